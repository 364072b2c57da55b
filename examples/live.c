/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* live: a guest's memory is saved, then captured while it runs: the image is of the pause, whatever it writes since. */
#include "fleet.h"

/* Stands for vCPUs: writes all over the memory until it is told to stop. */
struct guest {
	struct kvmem_region *ram;
	pthread_t thread;
	_Atomic bool stop;
};

static void *run_guest(void *arg)
{
	struct guest *g = arg;

	for (uint64_t n = 0; !atomic_load(&g->stop); n++)
		++*word_of(g->ram, n * 2011 % PAGES);
	return NULL;
}

static unsigned int capture(struct kvmem_image *saved)
{
	struct kvmem_image_create_opts o = { .size = sizeof(o), .parent = saved };
	struct kvmem_capture_stats stats = KVMEM_CAPTURE_STATS_INIT;
	struct guest guest = { .ram = make_full_ram() };
	struct kvmem_image_capture *capture;
	struct kvmem_image_writer *writer;
	struct kvmem_image *live;
	uint64_t begin = now_ns();

	must(kvmem_image_create("live", &o, &writer), "image");
	must(kvmem_image_capture_create(NULL, &capture), "capture");
	must(kvmem_image_capture_start(capture, writer, &guest.ram, 1, 0), "pause");
	must(-pthread_create(&guest.thread, NULL, run_guest, &guest), "guest");
	must(kvmem_image_capture_run(capture, NULL, NULL), "capture");
	must(kvmem_image_commit(writer, NULL), "commit");
	begin = now_ns() - begin;
	atomic_store(&guest.stop, true);
	pthread_join(guest.thread, NULL);
	must(kvmem_image_capture_get_stats(capture, &stats), "stats");
	must(kvmem_image_open("live.kvmem", NULL, &live), "open");
	return row("live capture", RAM, begin, 0, sum_of_image(live) == SUM) +
	       row("  of it the guest paused", RAM, stats.pause_ns, 0, sum_of(guest.ram) > SUM);
}

int main(void)
{
	struct kvmem_image *image = save_ram();
	unsigned int wrong;

	print_head();
	wrong = row("save", RAM, saved_ns, 0, sum_of_image(image) == SUM) + capture(image);
	leave_folder();
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS; /* the kernel frees what is left */
}

/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* event_loop: a pager without threads, in the event loop that a VMM has already. */
#include "small.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RAM (8 * MIB)

static struct vmm_vcpu *vcpu;
static uint64_t wrong;
static int ended; /* an eventfd: the vCPU's thread is done */

static void *vcpu_thread(void *arg)
{
	const uint64_t one = 1;

	wrong = small_run(vcpu, GUEST_VERIFY, GPA, RAM);
	must(write(ended, &one, sizeof(one)), "write");
	return arg;
}

int main(void)
{
	struct kvmem_pager_opts o = { .size = sizeof(o), .flags = KVMEM_PAGER_NO_THREADS };
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = small_ram(vm, KVMEM_WANT_PAGING, RAM);
	struct kvmem_source *image;
	struct kvmem_pager *pager;
	struct pollfd fds[2] = { { .events = POLLIN }, { .events = POLLIN } };
	uint64_t events = 0;
	pthread_t thread;
	struct vmm *vmm;

	must(kvmem_source_memory(small_image(RAM), RAM, &image), "image");
	must(kvmem_pager_create(&o, &pager), "pager");
	must(kvmem_pager_add(pager, ram, image, 0, 0), "add");
	must(kvmem_region_attach(ram, 0, RAM, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);
	must(kvmem_pager_start(pager), "start");
	fds[0].fd = (int)must(kvmem_pager_fd(pager), "kvmem_pager_fd");
	fds[1].fd = ended = eventfd(0, EFD_CLOEXEC);
	must(-pthread_create(&thread, NULL, vcpu_thread, NULL), "pthread_create");
	while (!fds[1].revents) { /* this thread must not touch absent pages itself */
		must(poll(fds, 2, -1), "poll");
		if (fds[0].revents)
			events += (uint64_t)must(kvmem_pager_handle(pager), "handle");
	}
	pthread_join(thread, NULL);
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL), "stop");
	must(kvmem_pager_free(pager), "free");
	printf("%u events, %u pages are wrong\n", (unsigned int)events, (unsigned int)wrong);
	vmm_destroy(vmm);
	return wrong || !events ? EXIT_FAILURE : EXIT_SUCCESS; /* the kernel frees what is left */
}

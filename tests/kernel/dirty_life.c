// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Dirty tracking while things change: signals, slots, vCPUs, trackers; and what else writes. */
#include "dirty_rig.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- signals ---- */

struct storm {
	pthread_t thread, target;
	atomic_bool stop;
	atomic_ulong sent;
};

static void *storm_main(void *arg)
{
	const struct timespec pause = {
		.tv_nsec = 20000
	}; /* others are to get on, on any machine */
	struct storm *s = arg;

	while (!atomic_load(&s->stop)) {
		pthread_kill(s->target, SIGUSR1);
		kill(getpid(), SIGUSR1); /* whichever thread will have it: a vCPU's */
		atomic_fetch_add(&s->sent, 1);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static bool storm_rages(void *arg)
{
	return atomic_load(&((struct storm *)arg)->sent) > 10;
}

static void storm_begin(struct storm *s)
{
	sigset_t usr1;

	atomic_store(&s->stop, false);
	atomic_store(&s->sent, 0);
	s->target = pthread_self();
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &usr1, NULL); /* it keeps out of its own way */
	ck_assert_int_eq(pthread_create(&s->thread, NULL, storm_main, s), 0);
	pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
	ck_assert(harness_wait(storm_rages, s, 30));
}

static void storm_end(struct storm *s)
{
	atomic_store(&s->stop, true);
	pthread_join(s->thread, NULL);
}

/* Resets of a few entries while the guest writes, then of so many that a signal must come in between. */
TEST(a_signal_storm_costs_no_page)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING, .vcpus = 2, .bytes = 32u << 20 };
	struct kvmem_dirty_stats stats = KVMEM_DIRTY_STATS_INIT;
	struct storm storm;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	rig_write(&rig, 0, 20, 1000, false);
	rig_write(&rig, 1, 20, 1000, true);
	storm_begin(&storm);
	rig_follow(&rig);
	storm_end(&storm);
	for (int round = 0; round < 10; round++) {
		rig_write(&rig, 0, 1, 4000, false);
		rig_write(&rig, 1, 1, 4000, true);
		rig_wait(&rig);
		storm_begin(&storm);
		rig_sync(&rig);
		storm_end(&storm);
	}
	ck_ok(kvmem_dirty_get_stats(rig.dirty, &stats));
	harness_note("%lu resets, %lu of them short", (unsigned long)stats.resets,
		     (unsigned long)stats.short_resets);
	ck_assert_uint_gt(stats.resets, 10);
	ck_assert_uint_eq(stats.short_resets, 0);
	ck_assert_uint_eq(rig_lost(&rig), 0);
	rig_close(&rig);
}
END

/*
 * What blocking signals does not keep out: the process is stopped and continued, as a debugger or the
 * freezer does. The kernel then resets fewer entries than were marked, and leaves some pages unprotected.
 */
TEST(large_batches)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING, .vcpus = 2, .bytes = 32u << 20 };
	struct kvmem_dirty_stats stats = KVMEM_DIRTY_STATS_INIT;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	for (int round = 0; round < 15; round++) {
		rig_write(&rig, 0, 1, 4096, false);
		rig_write(&rig, 1, 1, 4096, true);
		rig_wait(&rig);
		rig_sync(&rig);
	}
	while (rig_sync(&rig))
		;
	ck_ok(kvmem_dirty_get_stats(rig.dirty, &stats));
	harness_note("%lu resets, %lu of them short, %lu pages reported again",
		     (unsigned long)stats.resets, (unsigned long)stats.short_resets,
		     (unsigned long)stats.pages_kept);
	ck_assert_uint_eq(rig_lost(&rig), 0);
	ck_assert_uint_gt(rig_seen(&rig), 4096); /* each round writes the same pages */
	rig_close(&rig);
}
END

static pid_t run_apart(const char *name, int *ret_output)
{
	int fds[2];
	pid_t pid;

	ck_assert_int_eq(pipe(fds), 0);
	pid = fork();
	if (!pid) {
		dup2(fds[1], STDOUT_FILENO);
		close(fds[0]);
		close(fds[1]);
		execl("/proc/self/exe", "dirty_life", name, (char *)NULL);
		_exit(127);
	}
	ck_assert_int_gt(pid, 0);
	close(fds[1]);
	*ret_output = fds[0];
	return pid;
}

struct child {
	pid_t pid;
	int status;
};

static bool child_changed(void *arg)
{
	struct child *c = arg;

	return waitpid(c->pid, &c->status, WUNTRACED | WNOHANG) == c->pid;
}

#define STOPS 500u /* an emulated machine would get nowhere if they went on to the end */

TEST(stopped_and_continued_at_any_moment_nothing_is_lost)
{
	const struct timespec pause = { .tv_nsec = 300000 };
	unsigned int stops = 0;
	char output[4096];
	struct child child;
	ssize_t n;
	pid_t pid;
	int fd;

	SKIP_IF(!rig_has_ring(), "dirty-ring", "%s", kvmem_error_detail());
	pid = run_apart("large_batches", &fd);
	child.pid = pid;
	for (;;) {
		nanosleep(&pause, NULL);
		if (stops < STOPS)
			kill(pid, SIGSTOP);
		/* A VM being closed waits for a thread of the kernel's that the stop holds up: go on then. */
		if (harness_wait(child_changed, &child, 1)) {
			if (!WIFSTOPPED(child.status))
				break;
			stops++;
		}
		kill(pid, SIGCONT);
	}
	n = read(fd, output, sizeof(output) - 1);
	close(fd);
	output[n > 0 ? n : 0] = '\0';
	for (char *line = strtok(output, "\n"); line; line = strtok(NULL, "\n"))
		if (*line == '#')
			harness_note("stopped %u times:%s", stops, line + 1);
	ck_assert_uint_gt(stops, 0);
	ck_assert_int_eq(child.status, 0);
}
END

/* ---- slots ---- */

#define PART_PAGES 256u

/* Two parts of the RAM in turn behind one slot number and one address, never harvested in between. */
static void slots_come_and_go(uint32_t mode)
{
	struct rig_opts o = { .mode = mode };
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	uint64_t gpa = RIG_GPA + (UINT64_C(1) << 30), part = PART_PAGES * RIG_PAGE;
	unsigned char seen[4 * PART_PAGES] = { 0 };
	struct kvmem_region *extra;
	struct kvmem_batch *batch;
	struct kvmem_run run;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	ro.bytes = 4 * part;
	ro.needs = KVMEM_WANT_DIRTY;
	ck_ok(kvmem_region_create(rig.vm, &ro, &extra));
	ck_assert_msg(!vmm_map(rig.vmm, gpa, part), "%s", vmm_error());
	for (unsigned int i = 0; i < 4; i++) {
		struct guest_mailbox *box = vmm_mailbox(rig.vcpus[0]);

		ck_ok(kvmem_region_attach(extra, i * part, part, gpa, 77, 0, NULL));
		*box = (struct guest_mailbox){ .command = GUEST_WRITE,
					       .gpa = gpa,
					       .bytes = part,
					       .page = RIG_PAGE,
					       .seed = 5 + i,
					       .count = 10 * (i + 1) };
		ck_assert_msg(!vmm_run(rig.vcpus[0]), "%s", vmm_error());
		ck_ok(kvmem_region_detach(extra, 77));
	}
	ck_ok(kvmem_dirty_harvest(rig.dirty, &batch));
	ck_ok(kvmem_dirty_commit(rig.dirty, batch));
	while (kvmem_batch_next(batch, &run) == 1) {
		ck_assert_ptr_eq(run.region, extra);
		memset(seen + run.offset / RIG_PAGE, 1, run.bytes / RIG_PAGE);
	}
	for (unsigned int i = 0; i < 4; i++)
		for (unsigned int p = 0; p < PART_PAGES; p++)
			if (mode == KVMEM_DIRTY_RING || p < 10 * (i + 1))
				ck_assert_uint_eq(seen[i * PART_PAGES + p], p < 10 * (i + 1));
	kvmem_batch_free(batch);
	ck_assert_uint_eq(rig_sync(&rig), 0);
	ck_ok(kvmem_region_free(extra));
	rig_close(&rig);
}

TEST(ring_keeps_the_pages_of_slots_that_are_gone)
{
	slots_come_and_go(KVMEM_DIRTY_RING);
}
END

TEST(bitmap_keeps_the_pages_of_slots_that_are_gone)
{
	slots_come_and_go(KVMEM_DIRTY_BITMAP);
}
END

struct churn {
	struct kvmem_region *region;
	uint64_t gpa;
	atomic_bool stop;
	unsigned int turns;
	int64_t error;
};

static void *churn_main(void *arg)
{
	struct churn *c = arg;

	while (!atomic_load(&c->stop) && !c->error) {
		c->error = kvmem_region_attach(c->region, 0, 1 << 20, c->gpa, 9, 0, NULL);
		if (!c->error)
			c->error = kvmem_region_detach(c->region, 9);
		c->turns++;
	}
	return NULL;
}

/* Another thread attaches and detaches while rings fill and are harvested. */
TEST(slots_change_under_a_running_harvest)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING, .ring_entries = 1024, .vcpus = 2 };
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct churn churn = { .gpa = RIG_GPA + (UINT64_C(2) << 30) };
	struct rig rig;
	pthread_t t;

	if (!rig_open(&rig, &o))
		return;
	ro.bytes = 1 << 20;
	ro.needs = KVMEM_WANT_DIRTY;
	ck_ok(kvmem_region_create(rig.vm, &ro, &churn.region));
	rig_write(&rig, 0, 20, 1500, true);
	rig_write(&rig, 1, 20, 1500, false);
	ck_assert_int_eq(pthread_create(&t, NULL, churn_main, &churn), 0);
	rig_follow(&rig);
	atomic_store(&churn.stop, true);
	pthread_join(t, NULL);
	ck_assert_int_eq(churn.error, 0);
	ck_assert_uint_gt(churn.turns, 0);
	while (rig_sync(&rig))
		;
	ck_assert_uint_eq(rig_lost(&rig), 0);
	ck_ok(kvmem_region_free(churn.region));
	rig_close(&rig);
}
END

/* ---- vCPUs ---- */

TEST(a_vcpu_added_later_is_tracked_and_one_removed_leaves_its_pages)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING };
	struct kvmem_vcpu_stats v = KVMEM_VCPU_STATS_INIT;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	rig_write(&rig, 0, 1, 100, false);
	rig_wait(&rig);
	rig.count = 2;
	ck_assert_msg(!vmm_vcpu_create(rig.vmm, 1, &rig.vcpus[1]), "%s", vmm_error());
	ck_ok(kvmem_dirty_add_vcpu(rig.dirty, vmm_vcpu_fd(rig.vcpus[1])));
	rig_write(&rig, 1, 1, 50, false);
	rig_wait(&rig);
	ck_ok(kvmem_dirty_get_vcpu_stats(rig.dirty, vmm_vcpu_fd(rig.vcpus[1]), &v));
	ck_assert_uint_eq(v.pages, 0);
	ck_ok(kvmem_dirty_remove_vcpu(rig.dirty, vmm_vcpu_fd(rig.vcpus[1])));
	ck_assert_uint_eq(rig_sync(&rig), 150);
	ck_assert_uint_eq(rig_lost(&rig), 0);
	ck_ok(kvmem_dirty_get_vcpu_stats(rig.dirty, vmm_vcpu_fd(rig.vcpus[0]), &v));
	ck_assert_uint_ge(v.pages, 100);
	rig_close(&rig);
}
END

TEST(a_second_tracker_reads_the_rings_on)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING, .ring_entries = 1024 };
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	for (unsigned int round = 0; round < 5; round++) {
		rig_write(&rig, 0, 1, 300, false);
		rig_wait(&rig);
		ck_ok(kvmem_dirty_stop(rig.dirty)); /* 300 entries in the ring, dropped */
		ck_ok(kvmem_dirty_free(rig.dirty));
		ck_ok(kvmem_dirty_create(rig.vm, &d, &rig.dirty));
		ck_assert_uint_eq(kvmem_dirty_get_mode(rig.dirty), KVMEM_DIRTY_RING);
		ck_ok(kvmem_dirty_add_vcpu(rig.dirty, vmm_vcpu_fd(rig.vcpus[0])));
		memcpy(rig.copy, rig.base, rig.bytes);
		ck_ok(kvmem_dirty_start(rig.dirty));
		rig_forget(&rig);
		rig_write(&rig, 0, 2, 700, true);
		rig_wait(&rig);
		while (rig_sync(&rig))
			;
		ck_assert_uint_gt(rig_seen(&rig), 400);
		ck_assert_uint_eq(rig_lost(&rig), 0);
	}
	rig_close(&rig);
}
END

TEST(a_vcpu_before_the_tracker_means_the_bitmap)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_dirty *d = NULL;
	struct vmm_vcpu *vcpu;
	struct kvmem_vm *vm;
	struct vmm *vmm;

	SKIP_IF(!rig_has_ring(), "dirty-ring", "%s", kvmem_error_detail());
	vo.first_slot = 1;
	ck_ok(kvmem_vm_create(&vo, &vm));
	ck_assert_msg(!vmm_create(kvmem_vm_fd(vm), 0, NULL, &vmm), "%s", vmm_error());
	ck_assert_msg(!vmm_vcpu_create(vmm, 0, &vcpu), "%s", vmm_error());
	o.mode = KVMEM_DIRTY_RING;
	ck_fails(kvmem_dirty_create(vm, &o, &d), EBUSY, "vCPU");
	o.ring_entries = 1 << 20;
	ck_fails(kvmem_dirty_create(vm, &o, &d), EINVAL, "ring_entries");
	o.mode = KVMEM_DIRTY_AUTO;
	o.ring_entries = 0;
	ck_ok(kvmem_dirty_create(vm, &o, &d));
	ck_assert_uint_eq(kvmem_dirty_get_mode(d), KVMEM_DIRTY_BITMAP);
	ck_assert(strstr(kvmem_dirty_get_reason(d), "vCPU"));
	ck_ok(kvmem_dirty_add_vcpu(d, vmm_vcpu_fd(vcpu)));
	ck_ok(kvmem_dirty_free(d));
	vmm_destroy(vmm);
	ck_ok(kvmem_vm_free(vm));
}
END

TEST(wrong_file_descriptors)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING, .backing = KVMEM_BACKING_MEMFD };
	unsigned int fds, maps;
	struct rig rig;
	int memfd;

	if (!rig_open(&rig, &o))
		return;
	memfd = memfd_create("not a vCPU", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(memfd, 8 << 20), 0);
	fds = harness_count_fds();
	maps = harness_count_maps();
	ck_fails(kvmem_dirty_add_vcpu(rig.dirty, kvmem_vm_fd(rig.vm)), EINVAL, "not a vCPU");
	ck_fails(kvmem_dirty_add_vcpu(rig.dirty, memfd), EINVAL, "not a vCPU");
	ck_fails(kvmem_dirty_add_vcpu(rig.dirty, kvmem_region_fd(rig.ram)), EINVAL, "not a vCPU");
	ck_fails(kvmem_dirty_add_vcpu(rig.dirty, -1), EBADF, "not open");
	ck_fails(kvmem_dirty_add_vcpu(rig.dirty, vmm_vcpu_fd(rig.vcpus[0])), EEXIST, "before");
	ck_fails(kvmem_dirty_ring_full(rig.dirty, memfd), ENOENT, "not added");
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
	close(memfd);
	rig_close(&rig);
}
END

/* ---- the other options, and the other writers ---- */

TEST(the_reaper_keeps_rings_from_filling)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING,
			      .vcpus = 2,
			      .flags = KVMEM_DIRTY_REAPER,
			      .reap_ns = 1000000 };
	struct kvmem_dirty_stats stats = KVMEM_DIRTY_STATS_INIT;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	rig_write(&rig, 0, 40, 1000, true);
	rig_write(&rig, 1, 40, 1000, false);
	rig_follow(&rig);
	ck_ok(kvmem_dirty_get_stats(rig.dirty, &stats));
	harness_note("%lu reaps, %lu resets, %u exits with a full ring", (unsigned long)stats.reaps,
		     (unsigned long)stats.resets, rig.full);
	ck_assert_uint_gt(stats.reaps, 0);
	ck_assert_uint_eq(stats.short_resets, 0);
	ck_assert_uint_eq(rig_lost(&rig), 0);
	rig_close(&rig);
}
END

static void first_all(uint32_t mode)
{
	struct rig_opts o = { .mode = mode, .flags = KVMEM_DIRTY_FIRST_ALL };
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	ck_assert_uint_eq(rig_sync(&rig), rig.bytes / RIG_PAGE);
	rig_write(&rig, 0, 1, 20, false);
	rig_wait(&rig);
	ck_assert_uint_eq(rig_sync(&rig), 20);
	ck_assert_uint_eq(rig_lost(&rig), 0);
	rig_close(&rig);
}

TEST(first_all_reports_everything_once_ring)
{
	first_all(KVMEM_DIRTY_RING);
}
END

TEST(first_all_reports_everything_once_bitmap)
{
	first_all(KVMEM_DIRTY_BITMAP);
}
END

TEST(what_the_vmm_writes_is_merged)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_AUTO };
	uint64_t log[2] = { 0x11, 1ull << 63 }, bits[2] = { 0 };
	struct kvmem_batch *batch;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	rig.base[(32 + 0) * RIG_PAGE] = rig.base[(32 + 4) * RIG_PAGE] = 1;
	rig.base[(32 + 127) * RIG_PAGE] = 1;
	ck_ok(kvmem_dirty_merge(rig.dirty, rig.ram, 32 * RIG_PAGE, 128 * RIG_PAGE, 12, log));
	ck_assert_int_eq(kvmem_dirty_harvest(rig.dirty, &batch), 3);
	ck_ok(kvmem_dirty_commit(rig.dirty, batch));
	ck_ok(kvmem_batch_bitmap(batch, rig.ram, 32 * RIG_PAGE, 128 * RIG_PAGE, bits));
	ck_assert_int_eq(memcmp(log, bits, sizeof(bits)), 0);
	kvmem_batch_free(batch);
	rig_close(&rig);
}
END

TEST(a_batch_given_back_uncommitted_comes_again)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_AUTO };
	struct kvmem_batch *batch;
	struct rig rig;

	for (o.mode = KVMEM_DIRTY_RING; o.mode <= KVMEM_DIRTY_BITMAP; o.mode++) {
		if (!rig_open(&rig, &o))
			return;
		rig_write(&rig, 0, 1, 30, false);
		rig_wait(&rig);
		ck_assert_int_eq(kvmem_dirty_harvest(rig.dirty, &batch), 30);
		kvmem_batch_free(batch);
		ck_assert_uint_eq(rig_sync(&rig), 30);
		ck_assert_uint_eq(rig_sync(&rig), 0);
		rig_close(&rig);
	}
}
END

TEST(every_backing_is_tracked)
{
	static const uint32_t backings[] = { KVMEM_BACKING_GUEST_MEMFD, KVMEM_BACKING_MEMFD,
					     KVMEM_BACKING_ANONYMOUS };
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct rig rig;

	for (size_t i = 0; i < 3; i++) {
		struct rig_opts o = { .mode = KVMEM_DIRTY_AUTO,
				      .backing = backings[i],
				      .bytes = 8u << 20 };
		struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
		struct kvmem_vm *vm;
		int r;

		SKIP_IF(access("/dev/kvm", R_OK | W_OK), "kvm", "/dev/kvm cannot be opened");
		ck_ok(kvmem_vm_create(NULL, &vm));
		ro.bytes = o.bytes;
		ro.needs = KVMEM_WANT_DIRTY;
		ro.backing = backings[i];
		r = kvmem_region_plan(vm, &ro, &plan);
		ck_ok(kvmem_vm_free(vm));
		if (r == -EOPNOTSUPP)
			continue;
		if (!rig_open(&rig, &o))
			return;
		rig_write(&rig, 0, 5, 500, true);
		rig_follow(&rig);
		ck_assert_uint_eq(rig_lost(&rig), 0);
		rig_close(&rig);
	}
}
END

TEST(nothing_is_left_open)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_AUTO, .flags = KVMEM_DIRTY_REAPER };
	unsigned int fds = 0, maps = 0;
	struct rig rig;

	for (int i = 0; i < 4; i++) {
		if (!rig_open(&rig, &o))
			return;
		rig_write(&rig, 0, 1, 100, false);
		rig_wait(&rig);
		rig_sync(&rig);
		rig_close(&rig);
		if (i == 1) { /* the allocator has what it wants by now */
			fds = harness_count_fds();
			maps = harness_count_maps();
		}
	}
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_le(harness_count_maps(), maps);
}
END

HARNESS_MAIN(T(a_signal_storm_costs_no_page), T(large_batches),
	     T(stopped_and_continued_at_any_moment_nothing_is_lost),
	     T(ring_keeps_the_pages_of_slots_that_are_gone),
	     T(bitmap_keeps_the_pages_of_slots_that_are_gone),
	     T(slots_change_under_a_running_harvest),
	     T(a_vcpu_added_later_is_tracked_and_one_removed_leaves_its_pages),
	     T(a_second_tracker_reads_the_rings_on), T(a_vcpu_before_the_tracker_means_the_bitmap),
	     T(wrong_file_descriptors), T(the_reaper_keeps_rings_from_filling),
	     T(first_all_reports_everything_once_ring), T(first_all_reports_everything_once_bitmap),
	     T(what_the_vmm_writes_is_merged), T(a_batch_given_back_uncommitted_comes_again),
	     T(every_backing_is_tracked), T(nothing_is_left_open))

// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What disturbs a thread in the kernel: signals and stops that another process sends, and completions of its
 * own io_uring.
 */
#include "torture.h"

#include <liburing.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CALM, SIGNALS, STOPS, KINDS };

void storm_open(struct storm *storm, uint64_t seed)
{
	*storm = (struct storm){ .rng = rng_of(seed, 77) };
}

static void next_storm(struct storm *storm, uint64_t now)
{
	storm->what = (int)below(&storm->rng, KINDS);
	if ((storm->what == SIGNALS && !allowed(OP_SIGNALS)) ||
	    (storm->what == STOPS && !allowed(OP_STOPS)))
		storm->what = CALM;
	storm->until = now + between(&storm->rng, 20, 120) * 1000000;
	storm->pause_ns = storm->what == SIGNALS ? between(&storm->rng, 30, 400) * 1000
						 : between(&storm->rng, 1, 8) * 1000000;
}

static void send_signal(struct storm *storm, pid_t pid)
{
	int tid = report->trace[below(&storm->rng, MAX_THREADS)].tid;

	if (!tid)
		return;
	syscall(SYS_tgkill, pid, tid, SIGUSR2);
	count(COUNT_SIGNALS, 1);
}

static void stop_and_continue(struct storm *storm, pid_t pid)
{
	kill(pid, SIGSTOP);
	usleep((useconds_t)between(&storm->rng, 20, 2000));
	kill(pid, SIGCONT);
	count(COUNT_STOPS, 1);
}

uint64_t storm_step(struct storm *storm, pid_t pid)
{
	uint64_t now = now_ns();

	if (!atomic_load(&report->storming))
		return 2000000;
	if (now >= storm->until)
		next_storm(storm, now);
	if (storm->what == SIGNALS)
		send_signal(storm, pid);
	else if (storm->what == STOPS)
		stop_and_continue(storm, pid);
	return storm->pause_ns < 2000000 ? storm->pause_ns : 2000000;
}

/* ---- an io_uring whose completions interrupt its thread ---- */

struct busy_ring {
	struct io_uring ring;
	unsigned int under_way;
	struct __kernel_timespec time[256];
};

struct busy_ring *busy_ring_open(void)
{
	struct busy_ring *ring = calloc(1, sizeof(*ring));

	if (ring && io_uring_queue_init(256, &ring->ring, 0)) {
		free(ring);
		return NULL;
	}
	return ring;
}

/* Completions for the next milliseconds, one each few microseconds. */
void busy_ring_arm(struct busy_ring *ring, struct rng *rng)
{
	uint64_t step = between(rng, 4000, 40000), at = 0;
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&ring->ring, &cqe)) {
		io_uring_cqe_seen(&ring->ring, cqe);
		ring->under_way--;
	}
	while (ring->under_way < 256) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->ring);
		struct __kernel_timespec *time = &ring->time[ring->under_way];

		if (!sqe)
			break;
		time->tv_nsec = (long long)(at += step);
		io_uring_prep_timeout(sqe, time, 0, 0);
		ring->under_way++;
	}
	io_uring_submit(&ring->ring);
}

void busy_ring_close(struct busy_ring *ring)
{
	if (!ring)
		return;
	io_uring_queue_exit(&ring->ring);
	free(ring);
}

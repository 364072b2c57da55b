/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef NBD_RIG_H
#define NBD_RIG_H

/* A server that a test starts, stops and kills, and memory that its export fills. */

#include "on_top.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <kvmem/nbd.h>

#define MS  1000000ull
#define URI "nbd+unix:///?socket=sock"

/* ---- servers ---- */

struct server {
	pid_t pid;
	const char *args[32];
};

static inline bool has_nbdkit(void)
{
	return !system("command -v nbdkit >/dev/null"); /* NOLINT(cert-env33-c) */
}

#define NEED_NBDKIT() SKIP_IF(!has_nbdkit(), "nbdkit", "there is no program nbdkit")

static inline bool file_exists(void *path)
{
	return !access(path, F_OK);
}

/* It serves ./sock with these arguments, once more. */
static inline void server_run(struct server *s)
{
	posix_spawn_file_actions_t quiet;
	int r;

	unlink("sock");
	unlink("pid");
	posix_spawn_file_actions_init(&quiet);
	posix_spawn_file_actions_addopen(&quiet, STDERR_FILENO, "stderr",
					 O_WRONLY | O_CREAT | O_APPEND, 0600);
	r = posix_spawnp(&s->pid, "nbdkit", &quiet, NULL, (char *const *)s->args, environ);
	posix_spawn_file_actions_destroy(&quiet);
	ck_assert_int_eq(r, 0);
	ck_assert(harness_wait(file_exists, (char[]){ "pid" }, 60)); /* it listens */
}

static inline void server_start_args(struct server *s, const char *const *more)
{
	static const char *const first[] = { "nbdkit", "-f",   "--exit-with-parent",
					     "-U",     "sock", "-P",
					     "pid",    "-t",   "160" };
	size_t n = sizeof(first) / sizeof(first[0]);

	memset(s, 0, sizeof(*s));
	memcpy(s->args, first, sizeof(first));
	while ((s->args[n] = *more++) != NULL)
		ck_assert_uint_lt(++n, sizeof(s->args) / sizeof(s->args[0]));
	server_run(s);
}

#define server_start(s, ...) server_start_args(s, (const char *const[]){ __VA_ARGS__, NULL })

static inline void server_kill(struct server *s)
{
	ck_assert_int_eq(kill(s->pid, SIGKILL), 0);
	ck_assert_int_eq(waitpid(s->pid, NULL, 0), s->pid);
}

/* Of nbdkit's filter: no request is answered any more ('p'), until 'r'. */
static inline void server_pause(const char *command)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX, .sun_path = "pause" };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char answer;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	ck_assert_int_eq(write(fd, command, 1), 1);
	ck_assert_int_eq(read(fd, &answer, 1), 1);
	close(fd);
}

/* ---- what nbdkit's plugin "pattern" has: each eight bytes are their offset, the highest byte first ---- */

static inline uint8_t pattern_at(uint64_t offset)
{
	return (uint8_t)((offset & ~7ull) >> 8 * (7 - (offset & 7)));
}

static inline bool is_pattern(const uint8_t *buf, uint64_t offset, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		if (buf[i] != pattern_at(offset + i))
			return false;
	return true;
}

static inline bool is_zero(const uint8_t *buf, uint64_t bytes)
{
	return !bytes || (!buf[0] && !memcmp(buf, buf + 1, bytes - 1));
}

/* ---- the library ---- */

static inline struct kvmem_nbd *open_nbd(const struct kvmem_nbd_opts *o)
{
	struct kvmem_nbd *nbd;

	must(kvmem_nbd_open(URI, o, &nbd));
	return nbd;
}

static inline struct kvmem_source *source_of(struct kvmem_nbd *nbd, uint64_t offset, uint64_t bytes)
{
	struct kvmem_source *source;

	must(kvmem_nbd_source(nbd, offset, bytes, &source));
	return source;
}

static inline struct kvmem_nbd_stats stats_of(struct kvmem_nbd *nbd)
{
	struct kvmem_nbd_stats st = KVMEM_NBD_STATS_INIT;

	must(kvmem_nbd_get_stats(nbd, &st));
	return st;
}

static inline unsigned int count_threads(void)
{
	unsigned int n = 0;
	DIR *d = opendir("/proc/self/task");

	ck_assert_ptr_nonnull(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static inline bool are_threads(void *arg)
{
	return count_threads() == *(unsigned int *)arg;
}

/* The kernel lists a thread for a moment after it was joined. */
static inline void threads_are(unsigned int n)
{
	ck_assert(harness_wait(are_threads, &n, 20));
}

/* Memory under a pager that brings in one page at a time. */
struct memory {
	struct kvmem_region *ram;
	struct kvmem_pager *pager;
	struct kvmem_source *source;
	const uint8_t *base;
	uint64_t bytes;
};

/* False, with the skip recorded, where userfaultfd is not to be had. */
static inline bool memory_page(struct memory *m, struct kvmem_source *source, uint64_t bytes,
			       struct kvmem_pager_opts *opts)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_region_opts r = KVMEM_REGION_OPTS_INIT;
	int error;

	if (opts)
		o = *opts;
	o.fault_around = PAGE;
	error = kvmem_pager_create(&o, &m->pager);
	if (error == -EPERM || error == -ENOSYS || error == -EOPNOTSUPP) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return false;
	}
	must(error);
	r.bytes = m->bytes = bytes;
	r.backing = KVMEM_BACKING_MEMFD;
	must(kvmem_region_create(NULL, &r, &m->ram));
	m->base = kvmem_region_base(m->ram);
	m->source = source;
	must(kvmem_pager_add(m->pager, m->ram, source, 0, 0));
	must(kvmem_pager_start(m->pager));
	return true;
}

static inline void memory_free(struct memory *m)
{
	must(kvmem_pager_free(m->pager));
	must(kvmem_region_free(m->ram));
	must(kvmem_source_free(m->source));
}

static inline struct kvmem_pager_stats pager_stats(const struct memory *m)
{
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;

	must(kvmem_pager_get_stats(m->pager, &st));
	return st;
}

/* ---- accesses, which may end in a signal ---- */

static _Thread_local sigjmp_buf back;

static inline void on_signal(int sig)
{
	siglongjmp(back, sig);
}

static inline void catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
}

/* 0, or the signal that reading it raises. */
static inline int signal_of(const volatile uint8_t *at)
{
	int sig = sigsetjmp(back, 1);

	if (!sig)
		(void)*at;
	return sig;
}

/* Each from a thread of its own: one fault, one request. */
#define TOUCHERS 128u

struct toucher {
	const volatile uint8_t *at;
	int sig;
	_Atomic bool done;
	pthread_t thread;
};

static inline void *touch(void *arg)
{
	struct toucher *t = arg;

	t->sig = signal_of(t->at);
	atomic_store(&t->done, true);
	return NULL;
}

/* Every second page from the first on. */
static inline void touch_start(struct toucher *t, const struct memory *m, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		t[i].at = m->base + 2 * i * PAGE;
		atomic_store(&t[i].done, false);
		ck_assert_int_eq(pthread_create(&t[i].thread, NULL, touch, &t[i]), 0);
	}
}

static inline void touch_end(struct toucher *t, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		ck_assert_int_eq(pthread_join(t[i].thread, NULL), 0);
}

#endif

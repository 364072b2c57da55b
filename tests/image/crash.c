// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * An image is made while a tracer lets each of its system calls fail in turn, or ends it before each of them. Whatever
 * happens, the image of that name is then the old one or the new one, whole.
 */
#include "image_rig.h"

#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#define PAGES 40u
#define BYTES (PAGES * PAGE)

static uint8_t *old_model, *new_model;
static uint32_t layout; /* of the image that is made, and of those that are there */

/* What is traced begins with a call that nobody else makes. */
#define BEGIN_MARK 0x6b766d65

struct job {
	bool replace, chained;
	uint32_t layout; /* KVMEM_IMAGE_PACKED or 0 */
};

static int save_new(const struct job *job)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	struct kvmem_image *parent = NULL;
	struct kvmem_image_writer *w;
	int r = 0;

	o.flags = job->layout | (job->replace ? KVMEM_IMAGE_REPLACE : 0);
	if (job->chained) {
		r = kvmem_image_open("base.kvmem", NULL, &parent);
		o.parent = parent;
	} else {
		o.regions = &one;
		o.region_count = 1;
	}
	if (!r)
		r = kvmem_image_create("a", &o, &w);
	if (r) {
		kvmem_image_close(parent);
		return r;
	}
	for (uint64_t p = 0; !r && p < PAGES; p += 10)
		r = kvmem_image_write(w, p * PAGE, new_model + p * PAGE, 10 * PAGE);
	if (!r)
		r = kvmem_image_write_blob(w, "state", "new", 3);
	if (r)
		kvmem_image_abort(w);
	else
		r = kvmem_image_commit(w, NULL);
	kvmem_image_close(parent);
	return r;
}

/* Exits with 0, or 1 where the library reported a failure. */
static void child(const struct job *job)
{
	cpu_set_t one;

	/* On one processor an image is packed by one thread, the one that is traced. */
	CPU_ZERO(&one);
	CPU_SET((size_t)sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one);
	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
	raise(SIGSTOP);
	syscall(SYS_getpriority, BEGIN_MARK, 0);
	_exit(save_new(job) ? 1 : 0);
}

/* Of the registers of a stopped thread. */
/* A sanitizer ends the program when a call of its own fails. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static void set_call(pid_t pid, long nr, long result)
{
	struct user_regs_struct r;

	ptrace(PTRACE_GETREGS, pid, NULL, &r);
	if (nr)
		r.orig_rax = (unsigned long)nr;
	r.rax = (unsigned long)result;
	ptrace(PTRACE_SETREGS, pid, NULL, &r);
}
#define CAN_FAIL true
#else
static void set_call(pid_t pid, long nr, long result)
{
	(void)pid;
	(void)nr;
	(void)result;
}
#define CAN_FAIL false
#endif

/* To the next entry or exit of a system call; false when it has ended. */
static bool go_on(pid_t pid, int *ret_status)
{
	int signal = 0;

	for (;;) {
		ptrace(PTRACE_SYSCALL, pid, NULL, (void *)(uintptr_t)signal);
		if (waitpid(pid, ret_status, 0) < 0 || !WIFSTOPPED(*ret_status))
			return false;
		if (WSTOPSIG(*ret_status) == (SIGTRAP | 0x80))
			return true;
		signal = WSTOPSIG(*ret_status) == SIGTRAP ? 0 : WSTOPSIG(*ret_status);
	}
}

/* With its n-th call failing (error), or ended before it (0). Returns its status, and whether there was such a call. */
static int traced(const struct job *job, unsigned int n, int error, bool *ret_reached)
{
	struct __ptrace_syscall_info info;
	bool begun = false;
	unsigned int calls = 0;
	pid_t pid = fork();
	int status;

	if (!pid)
		child(job);
	*ret_reached = false;
	ck_assert_int_gt(pid, 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
	while (go_on(pid, &status)) {
		memset(&info, 0, sizeof(info));
		ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info);
		if (info.op != PTRACE_SYSCALL_INFO_ENTRY)
			continue;
		if (!begun) {
			begun = info.entry.nr == SYS_getpriority &&
				info.entry.args[0] == BEGIN_MARK;
			continue;
		}
		/* What ends the process, and what only frees memory, does not fail. */
		if (info.entry.nr == SYS_exit_group || (error && info.entry.nr == SYS_munmap) ||
		    ++calls != n)
			continue;
		*ret_reached = true;
		if (!error) {
			kill(pid, SIGKILL);
		} else {
			set_call(pid, -1, -ENOSYS);
			ck_assert(go_on(pid, &status));
			set_call(pid, 0, -error);
		}
	}
	return status;
}

static void start_over(const struct job *job)
{
	shell("rm -rf ./* ./.k*");
	save_model("base", old_model, BYTES, KVMEM_IMAGE_NO_SYNC | job->layout);
	if (job->replace)
		save_model("a", old_model, BYTES, KVMEM_IMAGE_NO_SYNC | job->layout);
}

/* 0: the old one, or none; 1: the new one. */
static int what_is_there(const struct job *job)
{
	struct kvmem_image *image;
	uint8_t *buf = malloc(BYTES);
	char blob[4] = "";
	int is_new, r = kvmem_image_open("a.kvmem", NULL, &image);

	if (r) {
		if (r != -ENOENT || job->replace)
			ck_abort_msg("%d: %s", r, kvmem_error_detail());
		free(buf);
		return 0;
	}
	must(kvmem_image_verify(image, NULL, NULL));
	must(kvmem_image_read(image, 0, buf, BYTES));
	is_new = !memcmp(buf, new_model, BYTES);
	ck_assert(is_new || (job->replace && !memcmp(buf, old_model, BYTES)));
	ck_assert_int_eq(kvmem_image_read_blob(image, "state", blob, 3) == 3, is_new);
	must(kvmem_image_close(image));
	free(buf);
	return is_new;
}

static void every_call(const struct job *job, int error)
{
	unsigned int n, reported = 0, news = 0, left = 0;
	bool reached = true;

	for (n = 1; reached; n++) {
		int status, is_new;

		start_over(job);
		status = traced(job, n, error, &reached);
		is_new = what_is_there(job);
		news += (unsigned int)is_new;
		if (!reached || error)
			ck_assert_msg(WIFEXITED(status), "call %u: status 0x%x", n, status);
		if (!reached)
			ck_assert(!WEXITSTATUS(status) && is_new);
		/* Success is the new one. A failure may be one after which it is there: the last sync. */
		if (error && WEXITSTATUS(status))
			reported++;
		else if (error)
			ck_assert_msg(is_new, "call %u: no failure, and the old image", n);
		/* A file that the next one can be put beside is all that a crash may leave. */
		left += files_here() != (job->replace || is_new ? 4u : 2u);
		if (error && !is_new)
			ck_assert_uint_eq(files_here(), job->replace ? 4 : 2);
	}
	harness_note(
		"%s%s%s, %s: %u calls, %u failures reported, %u times the new one, %u left a file",
		job->replace ? "replaced" : "new", job->chained ? ", on a parent" : "",
		job->layout ? ", packed" : "", error ? strerror(error) : "killed", n - 2, reported,
		news, left);
	ck_assert_uint_gt(n, 10);
}

static void in_all_ways(int error)
{
	old_model = malloc(BYTES);
	new_model = malloc(BYTES);
	enter_folder();
	for (uint64_t p = 0; p < PAGES; p++) {
		fill_page(old_model + p * PAGE, p, 1);
		fill_page(new_model + p * PAGE, p, 2);
		if (p % 5 == 0)
			memset(new_model + p * PAGE, 0, PAGE);
	}
	every_call(&(struct job){ .replace = false, .chained = false, .layout = layout }, error);
	every_call(&(struct job){ .replace = true, .chained = true, .layout = layout }, error);
	leave_folder();
	free(old_model);
	free(new_model);
}

TEST(killed_before_each_call)
{
	in_all_ways(0);
}
END

TEST(each_call_fails)
{
	SKIP_IF(!CAN_FAIL, "ptrace",
		"no way to let a call fail on this architecture, or in this build");
	in_all_ways(ENOSPC);
	in_all_ways(EINTR);
}
END

/* With an argument "packed" first: of packed images. */
int main(int argc, char **argv)
{
	const struct harness_test tests[] = { T(killed_before_each_call), T(each_call_fails) };

	if (argc > 1 && !strcmp(argv[1], "packed")) {
		layout = KVMEM_IMAGE_PACKED;
		argv[1] = argv[0];
		argc--;
		argv++;
	}
	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}

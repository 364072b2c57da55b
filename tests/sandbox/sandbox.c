// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What kvmem-sandbox(7) says: its lists are enough, what happens when a call of them is refused, and who needs no
 * privileges. With arguments it is what lists.py runs under a tracer.
 */
#include "filter.h"
#include "harness.h"
#include "life.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox_lists.h"

#define KVM_MINOR 232u
#define NOBODY	  65534u
#define KVM_GROUP 36u

/* ---- a life in a child ---- */

struct setting {
	const struct life *life;
	bool filters;		    /* just the lists of the page */
	const struct call *refused; /* NULL: none */
	int error;
	bool (*enter)(void); /* another user, another namespace; NULL: none */
};

static void phase_filter(enum life_phase phase)
{
	const struct call *all[] = { sandbox_everywhere, sandbox_stop, sandbox_run,
				     sandbox_create };
	const size_t counts[] = { sandbox_everywhere_count, sandbox_stop_count, sandbox_run_count,
				  sandbox_create_count };

	if (!filter_allow(all, counts, 4 - (size_t)phase))
		life_fail(LIFE_SETUP, "no filter can be set");
}

#define TOO_LONG 20u /* seconds: asleep for ever */

static int live(void *arg)
{
	const struct setting *s = arg;

	signal(SIGALRM, SIG_DFL);
	alarm(harness_emulated() ? 10 * TOO_LONG : TOO_LONG);
	if (!life_prepare() || (s->enter && !s->enter()))
		return LIFE_SETUP;
	if (s->filters)
		life_how.phase = phase_filter;
	if (s->refused && !filter_refuse(s->refused, s->error))
		return LIFE_SETUP;
	s->life->live();
	return LIFE_WHOLE;
}

static int quietly(void *arg)
{
	const struct setting *s = arg;
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (null < 0 || dup2(null, STDERR_FILENO) < 0)
		return LIFE_SETUP;
	return live((void *)s);
}

/* Whether this machine has what the lives need. */
static bool can_live(void)
{
	struct setting s = { .life = &lives[1] };
	int uffd;

	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0) {
		harness_skip("uffd", "%s", strerror(errno));
		return false;
	}
	close(uffd);
	if (access("/proc/sys/kernel/seccomp/actions_avail", F_OK)) {
		harness_skip("seccomp", "this kernel has none");
		return false;
	}
	ck_assert_int_eq(harness_child(live, &s), LIFE_WHOLE);
	return true;
}

static void all_live(struct setting *s)
{
	for (size_t i = 0; i < life_count; i++) {
		int r;

		s->life = &lives[i];
		r = harness_child(live, s);
		ck_assert_msg(r == LIFE_WHOLE, "%s: %d", lives[i].name, r);
	}
}

/* ---- the lists ---- */

TEST(the_lists_are_enough)
{
	struct setting s = { .filters = true };

	if (can_live())
		all_live(&s);
}
END

static int opens_while_it_runs(void *arg)
{
	(void)arg;
	phase_filter(LIFE_RUN);
	return open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0;
}

static int tracks_in_stop(void *arg)
{
	(void)arg;
	phase_filter(LIFE_STOP);
	return ioctl(-1, filter_ioctl("KVM_GET_DIRTY_LOG"), 0) != -1;
}

TEST(what_is_not_listed_is_refused)
{
	if (!can_live())
		return;
	ck_assert_int_eq(harness_child(opens_while_it_runs, NULL), FILTER_REFUSED);
	ck_assert_int_eq(harness_child(tracks_in_stop, NULL), FILTER_REFUSED);
}
END

/* ---- who has no privileges ---- */

/* /dev/kvm of a group, as distributions have it, in a /dev of one's own. */
static bool private_dev(void)
{
	mode_t mask = umask(0);
	bool made;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", "/mnt", "tmpfs", 0, "mode=755"))
		return false;
	made = !mknod("/mnt/kvm", S_IFCHR | 0660, makedev(10, KVM_MINOR)) &&
	       !chown("/mnt/kvm", 0, KVM_GROUP) &&
	       !mount("/mnt/kvm", "/dev/kvm", NULL, MS_BIND, NULL);
	umask(mask);
	return made;
}

static bool become_ordinary(void)
{
	const struct rlimit limit = { 64 << 10, 64 << 10 };
	gid_t group = KVM_GROUP;

	life_how.given = true;
	return life_open_uffds() && private_dev() && !setrlimit(RLIMIT_MEMLOCK, &limit) &&
	       !setgroups(1, &group) && !setgid(NOBODY) && !setuid(NOBODY) &&
	       !access("/dev/kvm", R_OK | W_OK);
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool r = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	close(fd);
	return r;
}

/* Root of a namespace, and nobody outside of it. */
static bool enter_user_namespace(void)
{
	const struct rlimit limit = { 64 << 10, 64 << 10 };

	life_how.given = true;
	return life_open_uffds() && !setrlimit(RLIMIT_MEMLOCK, &limit) && !unshare(CLONE_NEWUSER) &&
	       write_file("/proc/self/setgroups", "deny") &&
	       write_file("/proc/self/uid_map", "0 0 1") &&
	       write_file("/proc/self/gid_map", "0 0 1");
}

static int tries(void *arg)
{
	bool (**enter)(void) = arg;

	return !(*enter)();
}

static void without_privileges(bool (*enter)(void))
{
	struct setting s = { .enter = enter };

	if (!can_live())
		return;
	SKIP_IF(geteuid(), "root", "privileges cannot be dropped");
	SKIP_IF(harness_child(tries, &enter), "own-machine", "namespaces cannot be made here");
	all_live(&s);
}

TEST(as_an_ordinary_user)
{
	without_privileges(become_ordinary);
}
END

TEST(in_a_user_namespace)
{
	without_privileges(enter_user_namespace);
}
END

/* ---- each call refused ---- */

/* Another way, or a sentence, or a page that is an error to touch: never a sleep, a signal or wrong content. */
static bool is_honest(int end)
{
	return end == LIFE_WHOLE || end == LIFE_SAID || end == LIFE_POISONED;
}

static unsigned int refuse_in_all(const struct call *call, int error, unsigned int *ret_runs)
{
	unsigned int bad = 0;

	for (size_t i = 0; i < life_count; i++) {
		struct setting s = { .life = &lives[i], .refused = call, .error = error };
		int end;

		if (++*ret_runs % 37 && harness_emulated())
			continue;
		end = harness_child(quietly, &s);
		if (is_honest(end))
			continue;
		harness_note("%s(%s) refused by %s: %s ended with %d", call->name,
			     call->ioctl ? call->ioctl : "", strerror(error), lives[i].name, end);
		bad++;
	}
	return bad;
}

/* The lives' own, without which there is none. */
static bool is_the_vmms(const struct call *c)
{
	static const char *const names[] = { "read", "write", "close" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(names[i], c->name))
			return true;
	return false;
}

static unsigned int refuse_list(const struct call *calls, size_t count, unsigned int *ret_runs)
{
	unsigned int bad = 0;

	for (size_t i = 0; i < count; i++) {
		if (is_the_vmms(&calls[i]))
			continue;
		bad += refuse_in_all(&calls[i], EPERM, ret_runs);
		bad += refuse_in_all(&calls[i], ENOSYS, ret_runs);
	}
	return bad;
}

TEST(each_call_refused)
{
	unsigned int bad, runs = 0;

	if (!can_live())
		return;
	bad = refuse_list(sandbox_all, sandbox_all_count, &runs);
	harness_note("%u lives with a call refused%s", runs,
		     harness_emulated() ? ", one of 37 lived" : "");
	ck_assert_uint_gt(runs, 100);
	ck_assert_uint_eq(bad, 0);
}
END

/* ---- for lists.py ---- */

static const struct life *find(const char *name)
{
	for (size_t i = 0; i < life_count; i++)
		if (!strcmp(lives[i].name, name))
			return &lives[i];
	fprintf(stderr, "no life %s\n", name);
	exit(EXIT_FAILURE);
}

/* Say how each life ends when the N-th call of all is refused. */
static int refuse(const char *which, int error)
{
	for (size_t i = 0; i < sandbox_all_count; i++) {
		const struct call *c = &sandbox_all[i];

		if (strcmp(which, c->ioctl ? c->ioctl : c->name))
			continue;
		for (size_t l = 0; l < life_count; l++) {
			struct setting s = { .life = &lives[l], .refused = c, .error = error };

			fflush(stdout);
			printf("%s: %d\n", lives[l].name, harness_child(live, &s));
		}
		return EXIT_SUCCESS;
	}
	return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	const struct harness_test tests[] = { T(the_lists_are_enough),
					      T(what_is_not_listed_is_refused),
					      T(as_an_ordinary_user), T(in_a_user_namespace),
					      T(each_call_refused) };

	if (argc == 2 && !strcmp(argv[1], "--lives")) {
		for (size_t i = 0; i < life_count; i++)
			printf("%s\n", lives[i].name);
		return EXIT_SUCCESS;
	}
	if (argc == 2 && !strcmp(argv[1], "--ioctls")) {
		filter_print_ioctls();
		return EXIT_SUCCESS;
	}
	if (argc == 3 && !strcmp(argv[1], "--mark")) {
		life_how.marks = true;
		if (!life_prepare())
			return EXIT_FAILURE;
		find(argv[2])->live();
		return EXIT_SUCCESS;
	}
	if (argc == 3 && !strcmp(argv[1], "--refuse"))
		return refuse(argv[2], EPERM);
	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}

// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "harness.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char skip_facility[64];
static char skip_reason[256];

void harness_skip(const char *facility, const char *fmt, ...)
{
	va_list ap;

	snprintf(skip_facility, sizeof(skip_facility), "%s", facility);
	va_start(ap, fmt);
	vsnprintf(skip_reason, sizeof(skip_reason), fmt, ap);
	va_end(ap);
}

void harness_note(const char *fmt, ...)
{
	va_list ap;

	printf("# ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

static bool required(const char *facility)
{
	const char *list = getenv("KVMEM_TEST_REQUIRE");
	size_t n = strlen(facility);

	for (; list && *list; list += strcspn(list, ","), list += *list == ',')
		if (!strncmp(list, facility, n) && (list[n] == ',' || !list[n]))
			return true;
	return false;
}

static void print_diagnostics(SRunner *sr)
{
	TestResult **fails = srunner_failures(sr);

	for (int i = 0; i < srunner_ntests_failed(sr); i++)
		printf("# %s:%d: %s\n", tr_lfile(fails[i]), tr_lno(fails[i]), tr_msg(fails[i]));
	free(fails);
}

bool harness_emulated(void)
{
	return getenv("KVMEM_TEST_RIG");
}

/* Inside the rig: what the kernel has logged so far belongs to this test. */
static void mark_kernel_log(const char *name)
{
	FILE *f = harness_emulated() ? fopen("/dev/kmsg", "we") : NULL;

	if (!f)
		return;
	fprintf(f, "<7>kvmem-test: end of %s\n", name);
	fclose(f);
}

/* Returns whether the test counts as failed. */
static bool run_one(const struct harness_test *t, size_t number)
{
	Suite *suite = suite_create("s");
	TCase *tcase = tcase_create("t");
	SRunner *sr;
	bool failed, missing;

	skip_facility[0] = skip_reason[0] = '\0';
	tcase_add_test(tcase, t->test);
	suite_add_tcase(suite, tcase);
	sr = srunner_create(suite);
	srunner_set_fork_status(sr, CK_NOFORK);
	srunner_run_all(sr, CK_SILENT);

	failed = srunner_ntests_failed(sr) > 0;
	missing = !failed && skip_reason[0] && required(skip_facility);
	failed = failed || missing;
	mark_kernel_log(t->name);
	if (failed)
		printf("not ok %zu %s\n", number, t->name);
	else if (skip_reason[0])
		printf("ok %zu %s # SKIP %s: %s\n", number, t->name, skip_facility, skip_reason);
	else
		printf("ok %zu %s\n", number, t->name);
	print_diagnostics(sr);
	if (missing)
		printf("# %s is required here, but: %s\n", skip_facility, skip_reason);
	fflush(stdout);
	srunner_free(sr);
	return failed;
}

static bool selected(int argc, char **argv, const char *name)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], name))
			return true;
	return argc < 2;
}

int harness_main(int argc, char **argv, const struct harness_test *tests, size_t count)
{
	size_t run = 0, failed = 0, planned = 0;

	for (size_t i = 0; i < count; i++)
		planned += selected(argc, argv, tests[i].name);
	printf("1..%zu\n", planned);
	fflush(stdout);
	for (size_t i = 0; i < count; i++)
		if (selected(argc, argv, tests[i].name))
			failed += run_one(&tests[i], ++run);
	return failed || !planned;
}

bool harness_wait(bool (*fn)(void *arg), void *arg, unsigned int seconds)
{
	const struct timespec tick = { .tv_nsec = 1000000 };
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (!fn(arg)) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - start.tv_sec > (time_t)seconds)
			return false;
		clock_nanosleep(CLOCK_MONOTONIC, 0, &tick, NULL);
	}
	return true;
}

int harness_child(int (*fn)(void *arg), void *arg)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(fn(arg));
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 255;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

unsigned int harness_count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

/* A sanitizer's runtime maps memory of its own as it goes: nothing to count then. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

unsigned int harness_count_maps(void)
{
	return 0;
}

#else

unsigned int harness_count_maps(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return 0; /* a sanitizer's own come and go */
#endif
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned int n = 0;
	int c;

	while (f && (c = getc(f)) != EOF)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

#endif

unsigned long long harness_random(unsigned long long *state)
{
	unsigned long long x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

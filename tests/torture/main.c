// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The supervisor: one process for each round, its storms, its watchdog, and what is said about it. */
#include "torture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crc32c.h"

#define SHRINK_TRIES 12

char folder[FOLDER_BYTES] = "/tmp/kvmem-torture-XXXXXX";

struct options options = {
	.seed = 1, .seconds = 60, .mask = UINT64_MAX, .kind = -1, .hang_seconds = 30
};

/* ---- a round ---- */

static uint64_t round_seed(unsigned int round)
{
	return guest_pattern(options.seed, round);
}

static enum kind round_kind(unsigned int round)
{
	static const enum kind kinds[] = { KIND_MIX,   KIND_FAULTS, KIND_MIX,	 KIND_RING,
					   KIND_SLOTS, KIND_MIX,    KIND_FAULTS, KIND_MIX };

	if (options.no_vcpus)
		return KIND_MIX; /* the others are of guests alone */
	return options.kind >= 0 ? (enum kind)options.kind
				 : kinds[round % (sizeof(kinds) / sizeof(kinds[0]))];
}

static void print_file(const char *path)
{
	char line[200];
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof(line), f))
		fprintf(stderr, "    %.*s\n", (int)strcspn(line, "\n"), line);
	if (f)
		fclose(f);
}

/* Where its threads are in the kernel. */
static void print_threads(pid_t pid)
{
	char path[100];
	struct dirent *d;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && (d = readdir(dir))) {
		if (d->d_name[0] == '.')
			continue;
		fprintf(stderr, "  thread %.16s\n", d->d_name);
		snprintf(path, sizeof(path), "/proc/%d/task/%.16s/wchan", pid, d->d_name);
		print_file(path);
		snprintf(path, sizeof(path), "/proc/%d/task/%.16s/stack", pid, d->d_name);
		print_file(path);
	}
	if (dir)
		closedir(dir);
}

static const struct event *last_event(const struct trace *trace)
{
	return &trace->event[(trace->events - 1) % TRACE_EVENTS];
}

/* What is told about is the smallest of the ranges at which threads hang. */
static void choose_page(void)
{
	uint32_t least = UINT32_MAX;

	for (unsigned int i = 0; i < MAX_THREADS; i++) {
		const struct event *e = last_event(&report->trace[i]);

		if (!report->trace[i].busy_since || e->area < 0 || !e->count || e->count >= least)
			continue;
		least = e->count;
		report->fail_area = e->area;
		report->fail_page = (int)e->first;
	}
}

static bool hangs(void)
{
	uint64_t limit = (uint64_t)(options.hang_seconds * 1e9), now = now_ns();

	for (unsigned int i = 0; i < MAX_THREADS; i++) {
		const struct trace *trace = &report->trace[i];
		uint64_t since = trace->busy_since;

		if (!since || now <= since || now - since <= limit)
			continue;
		choose_page();
		snprintf(report->failure, sizeof(report->failure), "%s hangs in %s", trace->name,
			 operation_name((enum operation)last_event(trace)->op));
		return true;
	}
	return false;
}

static bool end_hanging(pid_t pid, unsigned int round)
{
	int status;

	if (!options.shrink || options.verbose) {
		report_print_failure(round);
		print_threads(pid);
	}
	if (options.hold) {
		fprintf(stderr, "torture: process %d is left as it is, until this one ends\n", pid);
		waitpid(pid, &status, 0);
		return false;
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return false;
}

static bool ended_well(int status, unsigned int round)
{
	if (WIFEXITED(status) && !WEXITSTATUS(status) && !report->failed)
		return true;
	if (WIFSIGNALED(status) && !report->failed)
		snprintf(report->failure, sizeof(report->failure), "ended by signal %d",
			 WTERMSIG(status));
	else if (!report->failed)
		snprintf(report->failure, sizeof(report->failure), "ended with %d",
			 WEXITSTATUS(status));
	if (!options.shrink || options.verbose)
		report_print_failure(round);
	return false;
}

static bool supervise(pid_t pid, unsigned int round)
{
	struct storm storm;
	uint64_t next_look = 0;
	int status;

	storm_open(&storm, round_seed(round));
	for (;;) {
		uint64_t sleep_ns = storm_step(&storm, pid);

		if (waitpid(pid, &status, WNOHANG) == pid)
			return ended_well(status, round);
		if (now_ns() > next_look) {
			if (hangs())
				return end_hanging(pid, round);
			next_look = now_ns() + 100000000;
		}
		usleep((useconds_t)(sleep_ns / 1000));
	}
}

/* What a round that failed has left. */
static void empty_folder(void)
{
	struct dirent *d;
	DIR *dir = opendir(folder);

	while (dir && (d = readdir(dir)))
		if (d->d_name[0] != '.')
			unlinkat(dirfd(dir), d->d_name, 0);
	if (dir)
		closedir(dir);
}

static bool do_round(unsigned int round)
{
	bool ok;
	pid_t pid;

	report_clear();
	swarm_open(round_seed(round));
	fflush(NULL);
	pid = fork();
	if (pid < 0) {
		perror("torture: fork");
		exit(2);
	}
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_round(round_seed(round), round_kind(round));
		exit(0);
	}
	ok = supervise(pid, round);
	empty_folder();
	return ok;
}

/* ---- shrinking ---- */

static bool fails_still(unsigned int round)
{
	for (unsigned int i = 0; i < SHRINK_TRIES; i++)
		if (!do_round(round))
			return true;
	return false;
}

/* Leaves out one kind of operation after the other, as long as the round still fails without it. */
static void shrink(unsigned int round)
{
	options.shrink = true;
	for (unsigned int op = 0; op < OP_COUNT; op++) {
		uint64_t before = options.mask;

		if (op == OP_SETUP || op == OP_CLOSE || op == OP_COMMIT || op == OP_AUDIT)
			continue;
		options.mask &= ~(UINT64_C(1) << op);
		if (!fails_still(round))
			options.mask = before;
		else
			continue;
		fprintf(stderr, "torture: %s is needed\n", operation_name((enum operation)op));
	}
	options.shrink = false;
	fprintf(stderr, "torture: what is left:\n");
	for (unsigned int i = 0; i < SHRINK_TRIES && do_round(round); i++)
		;
}

/* ---- options ---- */

static void usage(FILE *to)
{
	fprintf(to,
		"usage: torture [options]\n\n"
		"Random operations on guest memory, by several threads and running guests, compared with a model.\n\n"
		"  --seed N           what is done (1)\n"
		"  --seconds S        how long (60)\n"
		"  --minutes M\n"
		"  --rounds N         how many rounds at most\n"
		"  --round N          this round only, until it fails or the time is over\n"
		"  --kind K           only rounds of this kind: mix, faults, ring, slots\n"
		"  --backing B        memory of this kind in mixed rounds: guest-memfd, memfd, hugetlb,\n"
		"                     anonymous\n"
		"  --no-vcpus         without KVM: mixed rounds in which threads are the only writers\n"
		"  --without OP,...   leave operations out\n"
		"  --only OP,...      leave all others out\n"
		"  --shrink           after a failure, find out which operations it needs\n"
		"  --hang S           an operation that takes longer hangs (30)\n"
		"  --hold             leave a round that hangs to a debugger\n"
		"  --verbose          a line for each round\n\n"
		"operations:");
	for (unsigned int op = 0; op < OP_COUNT; op++)
		fprintf(to, " %s", operation_name((enum operation)op));
	fprintf(to, "\n");
}

static uint64_t mask_of(char *names)
{
	uint64_t mask = 0;

	for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
		unsigned int op = 0;

		while (op < OP_COUNT && strcmp(name, operation_name((enum operation)op)) != 0)
			op++;
		if (op == OP_COUNT) {
			fprintf(stderr, "torture: no operation '%s'\n", name);
			exit(2);
		}
		mask |= UINT64_C(1) << op;
	}
	return mask;
}

static unsigned int index_of(const char *what, const char *name, const char *const *names,
			     unsigned int count_)
{
	for (unsigned int i = 0; i < count_; i++)
		if (!strcmp(name, names[i]))
			return i;
	fprintf(stderr, "torture: no %s '%s'\n", what, name);
	exit(2);
}

static int kind_of(const char *name)
{
	static const char *const kinds[KIND_COUNT] = { "mix", "faults", "ring", "slots" };

	return (int)index_of("kind", name, kinds, KIND_COUNT);
}

/* In the order of enum kvmem_backing. */
static uint32_t backing_of(const char *name)
{
	static const char *const backings[] = { "any", "guest-memfd", "memfd", "hugetlb",
						"anonymous" };

	return index_of("backing", name, backings, 5);
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "seed", 1, NULL, 's' },    { "seconds", 1, NULL, 't' },
		{ "minutes", 1, NULL, 'm' }, { "rounds", 1, NULL, 'n' },
		{ "round", 1, NULL, 'r' },   { "kind", 1, NULL, 'k' },
		{ "backing", 1, NULL, 'b' }, { "without", 1, NULL, 'w' },
		{ "only", 1, NULL, 'o' },    { "shrink", 0, NULL, 'S' },
		{ "hang", 1, NULL, 'H' },    { "hold", 0, NULL, 'h' },
		{ "verbose", 0, NULL, 'v' }, { "no-vcpus", 0, NULL, 'V' },
		{ "help", 0, NULL, '?' },    { NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 's':
			options.seed = strtoull(optarg, NULL, 0);
			break;
		case 't':
			options.seconds = strtod(optarg, NULL);
			break;
		case 'm':
			options.seconds = strtod(optarg, NULL) * 60;
			break;
		case 'n':
			options.rounds = (unsigned int)strtoul(optarg, NULL, 0);
			break;
		case 'r':
			options.first_round = (unsigned int)strtoul(optarg, NULL, 0);
			options.one_round = true;
			break;
		case 'k':
			options.kind = kind_of(optarg);
			break;
		case 'b':
			options.backing = backing_of(optarg);
			break;
		case 'w':
			options.mask &= ~mask_of(optarg);
			break;
		case 'o':
			options.mask = mask_of(optarg) | UINT64_C(1) << OP_HARVEST |
				       UINT64_C(1) << OP_COMMIT | UINT64_C(1) << OP_AUDIT |
				       UINT64_C(1) << OP_SETUP | UINT64_C(1) << OP_CLOSE;
			break;
		case 'S':
			options.want_shrink = true;
			break;
		case 'H':
			options.hang_seconds = strtod(optarg, NULL);
			break;
		case 'h':
			options.hold = true;
			break;
		case 'V':
			options.no_vcpus = true;
			break;
		case 'v':
			options.verbose = true;
			break;
		default:
			usage(optopt ? stderr : stdout);
			exit(optopt ? 2 : 0);
		}
	}
}

static void say_round(unsigned int round, double seconds)
{
	if (options.verbose)
		printf("%6.1f s  round %u%s\n", seconds, round, report->setup);
}

/* The host looks at pages with it, since a load of a poisoned one is a signal. */
static bool can_read_pages(void)
{
	char from = 1, to = 0;
	struct iovec local = { &to, 1 }, remote = { &from, 1 };

	return syscall(SYS_process_vm_readv, getpid(), &local, 1ul, &remote, 1ul, 0ul) == 1;
}

int main(int argc, char **argv)
{
	uint64_t start = now_ns();
	unsigned int round;
	double seconds;
	bool ok;

	parse(argc, argv);
	if (!options.no_vcpus && access("/dev/kvm", R_OK | W_OK)) {
		fprintf(stderr, "torture: /dev/kvm cannot be opened (there is --no-vcpus): %s\n",
			strerror(errno));
		return 77;
	}
	if (!can_read_pages()) {
		fprintf(stderr, "torture: this kernel has no process_vm_readv()\n");
		return 77;
	}
	if (!mkdtemp(folder)) {
		perror(folder);
		return 2;
	}
	crc32c_init();
	report_open();
	round = options.first_round;
	do {
		ok = do_round(round);
		seconds = (double)(now_ns() - start) / 1e9;
		say_round(round, seconds);
		if (ok && !options.one_round)
			round++;
	} while (ok && seconds < options.seconds &&
		 (!options.rounds || round - options.first_round < options.rounds));
	if (!ok && options.want_shrink)
		shrink(round);
	printf("torture: seed %llu, rounds %u to %u: %s\n", (unsigned long long)options.seed,
	       options.first_round, round, ok ? "ok" : "FAILED");
	report_print_counts(seconds);
	rmdir(folder);
	return ok ? 0 : 1;
}

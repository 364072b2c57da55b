// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The first process of a booted kernel. Runs the programs of /rig/programs one after another
 * and sends what they print, what the kernel logs and how they end as tagged lines over one
 * serial line, in the order in which it happened:
 *
 *   B name          a program begins          K level text    a line of the kernel log
 *   O text          a line of its stdout      T seconds       it took too long and was killed
 *   E text          a line of its stderr      X status lines  it ended; so many lines were sent
 *   D               all have ended            H               still alive
 *
 * The kernel log is read out before each line of stdout is passed on: what a test made the
 * kernel say comes before that test's result.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define ARGS_MAX 64
#define LINE_LEN (64 * 1024)
#define BEAT	 5.0 /* seconds between signs of life */

struct stream {
	int fd;
	char tag;
	size_t used;
	char buf[LINE_LEN];
};

static int serial_fd, kmsg_fd;
static unsigned long lines_sent;

static void send_all(const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(serial_fd, buf, len);

		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return;
		if (n > 0) {
			buf += n;
			len -= (size_t)n;
		}
	}
}

static void send_line(char tag, const char *text, size_t len)
{
	const char head[2] = { tag, ' ' };

	send_all(head, sizeof(head));
	send_all(text, len);
	send_all("\n", 1);
	lines_sent++;
}

static __attribute__((format(printf, 2, 3))) void send_text(char tag, const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	send_line(tag, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
}

/* A record reads "priority,sequence,time,flags;text\n keys\n". */
static void send_kernel_record(char *record)
{
	char *text = strchr(record, ';');
	char *end;

	if (!text)
		return;
	text++;
	end = strchr(text, '\n');
	if (end)
		*end = '\0';
	send_text('K', "%ld %s", strtol(record, NULL, 10) & 7, text);
}

static void drain_kernel_log(void)
{
	char record[8192];
	ssize_t n;

	for (;;) {
		n = read(kmsg_fd, record, sizeof(record) - 1);
		if (n > 0) {
			record[n] = '\0';
			send_kernel_record(record);
		} else if (n < 0 && errno == EPIPE) {
			send_text('K', "3 WARNING: rig: the kernel log ran over, lines are lost");
		} else if (!(n < 0 && errno == EINTR)) {
			return;
		}
	}
}

static void stream_flush(struct stream *s, size_t len)
{
	if (s->tag == 'O')
		drain_kernel_log();
	send_line(s->tag, s->buf, len);
}

static void stream_lines(struct stream *s)
{
	char *end;

	while ((end = memchr(s->buf, '\n', s->used))) {
		size_t len = (size_t)(end - s->buf);

		stream_flush(s, len);
		s->used -= len + 1;
		memmove(s->buf, end + 1, s->used);
	}
	if (s->used == sizeof(s->buf)) {
		stream_flush(s, s->used);
		s->used = 0;
	}
}

/* Returns false at the end of the stream. */
static bool stream_read(struct stream *s)
{
	ssize_t n = read(s->fd, s->buf + s->used, sizeof(s->buf) - s->used);

	if (n > 0) {
		s->used += (size_t)n;
		stream_lines(s);
		return true;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (s->used)
		stream_flush(s, s->used);
	s->used = 0;
	return false;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void dump_file(const char *path)
{
	char line[256];
	FILE *f = fopen(path, "re");

	if (!f)
		return;
	while (fgets(line, sizeof(line), f))
		send_text('E', "%s: %.*s", path, (int)strcspn(line, "\n"), line);
	fclose(f);
}

static void dump_threads(pid_t pid)
{
	char path[256];
	struct dirent *d;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return;
	while ((d = readdir(dir))) {
		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%.20s/comm", pid, d->d_name);
		dump_file(path);
		snprintf(path, sizeof(path), "/proc/%d/task/%.20s/stack", pid, d->d_name);
		dump_file(path);
	}
	closedir(dir);
}

static pid_t spawn(char **argv, struct stream *out, struct stream *err)
{
	int o[2], e[2];
	pid_t pid;

	if (pipe2(o, O_CLOEXEC) || pipe2(e, O_CLOEXEC))
		return -1;
	pid = fork();
	if (pid == 0) {
		int null = open("/dev/null", O_RDONLY);

		setsid();
		dup2(null, 0);
		dup2(o[1], 1);
		dup2(e[1], 2);
		execv(argv[0], argv);
		dprintf(2, "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	close(o[1]);
	close(e[1]);
	*out = (struct stream){ .fd = o[0], .tag = 'O' };
	*err = (struct stream){ .fd = e[0], .tag = 'E' };
	return pid;
}

/* Collects every child that has ended; true once pid is among them. */
static bool reap(pid_t pid, int *status)
{
	bool found = false;
	int st;
	pid_t p;

	while ((p = waitpid(-1, &st, WNOHANG)) > 0) {
		if (p == pid) {
			*status = st;
			found = true;
		}
	}
	return found;
}

/* Says that the machine lives, from time to time; not counted. */
static void beat(void)
{
	static double last;
	double t = now();

	if (t - last < BEAT)
		return;
	last = t;
	send_all("H \n", 3);
}

/* Serves both streams until the program and they have ended; false: it cannot be killed. */
static bool serve(pid_t pid, struct stream *out, struct stream *err, double limit, int *status)
{
	double deadline = now() + limit;
	bool ended = false, killed = false;

	for (;;) {
		struct pollfd p[3] = {
			{ .fd = out->fd, .events = POLLIN },
			{ .fd = err->fd, .events = POLLIN },
			{ .fd = kmsg_fd, .events = POLLIN },
		};

		if (poll(p, 3, 50) > 0) {
			if (p[1].revents && !stream_read(err))
				err->fd = -1;
			if (p[0].revents && !stream_read(out))
				out->fd = -1;
			if (p[2].revents)
				drain_kernel_log();
		}
		beat();
		if (!ended)
			ended = reap(pid, status);
		/* A grandchild may hold the pipes: what it prints later is nobody's. */
		if (ended && out->fd >= 0 && killed)
			return true;
		if (ended && out->fd < 0 && err->fd < 0)
			return true;
		if (now() < deadline)
			continue;
		if (killed)
			return false;
		send_text('T', "%.0f", limit);
		dump_threads(pid);
		drain_kernel_log();
		kill(-pid, SIGKILL);
		kill(pid, SIGKILL);
		killed = true;
		deadline = now() + 10;
	}
}

static int exit_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Returns false when the machine is no longer fit for the next program. */
static bool run_program(const char *name, double limit, char **argv)
{
	static struct stream out, err;
	int status = 0;
	bool ok;
	pid_t pid;

	drain_kernel_log();
	lines_sent = 0;
	send_text('B', "%s", name);
	pid = spawn(argv, &out, &err);
	if (pid < 0) {
		send_text('E', "cannot start %s: %s", name, strerror(errno));
		send_text('X', "127 %lu", lines_sent);
		return true;
	}
	ok = serve(pid, &out, &err, limit, &status);
	kill(-pid, SIGKILL);
	if (out.fd >= 0)
		close(out.fd);
	if (err.fd >= 0)
		close(err.fd);
	drain_kernel_log();
	if (!ok)
		send_text('E', "%s does not even end by SIGKILL", name);
	send_text('X', "%d %lu", ok ? exit_code(status) : 255, lines_sent);
	return ok;
}

static int split(char *line, char **fields, int max)
{
	int n = 0;

	line[strcspn(line, "\n")] = '\0';
	for (char *f = strtok(line, "\t"); f && n < max - 1; f = strtok(NULL, "\t"))
		fields[n++] = f;
	fields[n] = NULL;
	return n;
}

static void run_programs(void)
{
	FILE *list = fopen("/rig/programs", "re");
	char *fields[ARGS_MAX];
	char line[8192];

	if (!list) {
		send_text('E', "/rig/programs: %s", strerror(errno));
		return;
	}
	while (fgets(line, sizeof(line), list)) {
		if (split(line, fields, ARGS_MAX) < 3)
			continue;
		if (!run_program(fields[0], strtod(fields[1], NULL), fields + 2))
			break;
	}
	fclose(list);
}

static void load_environment(void)
{
	FILE *f = fopen("/rig/env", "re");
	char line[8192];

	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		putenv(strdup(line));
	}
	if (f)
		fclose(f);
}

static int open_serial(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios t;

	if (fd >= 0 && tcgetattr(fd, &t) == 0) {
		cfmakeraw(&t);
		tcsetattr(fd, TCSANOW, &t);
	}
	return fd;
}

int main(void)
{
	serial_fd = open_serial("/dev/ttyS1");
	kmsg_fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (serial_fd < 0 || kmsg_fd < 0) {
		fprintf(stderr, "rig: no /dev/ttyS1 or /dev/kmsg: %s\n", strerror(errno));
		reboot(RB_POWER_OFF);
	}
	load_environment();
	if (chdir("/tmp"))
		fprintf(stderr, "rig: /tmp: %s\n", strerror(errno));
	run_programs();
	send_text('D', "%s", "");
	tcdrain(serial_fd);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

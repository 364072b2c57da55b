// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The rig's own test: does what it boots have KVM, and does what it brings back hold?
 * "selftest hang" and "selftest warn" misbehave on purpose.
 */

#include <dirent.h>
#include <signal.h>
#include "kvm.h"

static int count_nodes(void)
{
	DIR *dir = opendir("/sys/devices/system/node");
	struct dirent *d;
	int n = 0;

	while (dir && (d = readdir(dir)))
		n += strncmp(d->d_name, "node", 4) == 0 && d->d_name[4] >= '0' &&
		     d->d_name[4] <= '9';
	if (dir)
		closedir(dir);
	return n;
}

static void log_to_kernel(const char *text)
{
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

	must(fd >= 0 && write(fd, text, strlen(text)) > 0, "/dev/kmsg");
	close(fd);
}

/* mov al, 42; out 0x10, al; hlt */
static void test_guest(void)
{
	static const uint8_t code[] = { 0xb0, 42, 0xe6, 0x10, 0xf4 };
	int vm = kvm_new_vm();
	uint8_t *ram = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
			    0);
	struct vcpu v;

	must(ram != MAP_FAILED, "mmap");
	memcpy(ram + PAGE, code, sizeof(code));
	must(!slot_set(vm, 0, 0, 0, 16 * PAGE, ram), "KVM_SET_USER_MEMORY_REGION");
	v = vcpu_new(vm, PAGE);
	tap_ok(vcpu_run(&v) == 42, "guest-runs");
	vcpu_free(&v);
	munmap(ram, 16 * PAGE);
	close(vm);
}

static void test_guest_memfd(void)
{
	int vm = kvm_new_vm();
	int flags = gmem_flags(vm);
	int fd = gmem_new(vm, 4 * PAGE, flags > 0 ? (uint64_t)flags & 3 : 0);

	tap_note("guest_memfd flags %#x", flags < 0 ? 0u : (unsigned)flags);
	if (fd < 0)
		tap_skip("guest-memfd", strerror(errno));
	else
		tap_ok(true, "guest-memfd");
	if (fd >= 0)
		close(fd);
	close(vm);
}

static void test_many_lines(void)
{
	for (int i = 0; i < 2000; i++)
		printf("line %d of 2000, none of which may be lost on the way out\n", i);
	tap_ok(true, "many-lines");
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "";
	int kvm = kvm_open();

	if (kvm < 0) {
		fprintf(stderr, "/dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	tap_ok(ioctl(kvm, KVM_GET_API_VERSION, 0ul) == 12, "api-version");
	close(kvm);
	test_guest();
	test_guest_memfd();
	if (getenv("KVMEM_TEST_RIG")) {
		if (count_nodes() < 2)
			tap_skip("two-nodes", "one node only");
		else
			tap_ok(true, "two-nodes");
		printf("# expect-kernel-log: ^BUG: announced\n");
		fflush(stdout);
		log_to_kernel("BUG: announced by the rig's own test\n");
		tap_ok(true, "announced-log");
		test_many_lines();
	}
	if (!strcmp(how, "warn")) {
		log_to_kernel("WARNING: not announced by the rig's own test\n");
		tap_ok(true, "unannounced-log");
	}
	if (!strcmp(how, "hang")) {
		sigset_t all;

		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, NULL);
		for (;;)
			pause();
	}
	return tap_done();
}

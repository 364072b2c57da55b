/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* populate [FILE]: fill a guest's memory from a file by each method there is, and say how fast. */
#include "example.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static struct kvmem_region *make_ram(struct kvmem_vm *vm, uint64_t bytes)
{
	struct kvmem_region_opts opts = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;

	opts.bytes = (bytes + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
	opts.wants = KVMEM_WANT_WRITE; /* a file: one of the methods is write() */
	must(kvmem_region_create(vm, &opts, &ram), "kvmem_region_create");
	return ram;
}

static int same_as_file(struct kvmem_region *ram, int fd, uint64_t bytes)
{
	const char *base = kvmem_region_base(ram);
	static char chunk[1 << 20];

	for (uint64_t at = 0; at < bytes;) {
		ssize_t got = pread(fd, chunk, sizeof(chunk), (off_t)at);

		if (got <= 0 || memcmp(chunk, base + at, (size_t)got))
			return 0;
		at += (uint64_t)got;
	}
	return 1;
}

static void report(const struct kvmem_populate_result *r, uint64_t bytes)
{
	const char *file = kvmem_file_method_name(r->file_method);

	printf("%-14s %-18s %u thread%s %8.0f MiB/s  copied %llu, written %llu, read %llu, zero "
	       "%llu, hole %llu\n",
	       kvmem_fill_method_name(r->method), file ? file : "-", r->threads,
	       r->threads == 1 ? " " : "s", mib_per_s(bytes, r->elapsed_ns),
	       (unsigned long long)r->bytes_copied, (unsigned long long)r->bytes_written,
	       (unsigned long long)r->bytes_read, (unsigned long long)r->bytes_zero,
	       (unsigned long long)r->bytes_hole);
}

/* 0: the method is not to be had here, which is said; 1: done, and the content is right. */
static int try_method(struct kvmem_vm *vm, struct kvmem_source *source, int fd, uint32_t method)
{
	struct kvmem_populate_result result = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_populate_opts opts = KVMEM_POPULATE_OPTS_INIT;
	uint64_t bytes = kvmem_source_bytes(source);
	struct kvmem_region *ram = make_ram(vm, bytes);
	int ret;

	opts.method = method;
	ret = kvmem_populate(ram, 0, source, &opts, &result);
	if (ret == -EOPNOTSUPP && method != KVMEM_FILL_AUTO)
		printf("%-14s %s\n", kvmem_fill_method_name(method), kvmem_error_detail());
	else {
		must(ret, "kvmem_populate");
		report(&result, bytes);
		if (!same_as_file(ram, fd, bytes)) {
			fprintf(stderr, "the memory is not what the file holds\n");
			exit(EXIT_FAILURE);
		}
	}
	kvmem_region_free(ram);
	return ret == 0;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "/proc/self/exe";
	struct kvmem_source *source;
	struct kvmem_vm *vm;
	int fd, done = 0;

	fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		perror(name);
		return EXIT_FAILURE;
	}
	vm = must_have_vm(NULL);
	must(kvmem_source_file(fd, 0, 0, 0, &source), "kvmem_source_file");
	printf("%s: %llu bytes\n", name, (unsigned long long)kvmem_source_bytes(source));
	for (uint32_t method = KVMEM_FILL_AUTO; method <= KVMEM_FILL_COPY; method++)
		done += try_method(vm, source, fd, method);
	kvmem_source_free(source);
	kvmem_vm_free(vm);
	close(fd);
	return done ? EXIT_SUCCESS : EXIT_FAILURE;
}

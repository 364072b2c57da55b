// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "fake_kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"
#include "base/uapi/userfaultfd.h"

#define PAGE  4096u
#define GMEMS 256
#define MAPS  256

struct fake_kvm kvm;

/* File descriptors come and go under any number, so objects are known by inode. */
static struct gmem {
	ino_t ino;
	uint64_t flags;
	uint64_t written; /* bit per page, of the first 64 */
} gmems[GMEMS];
static unsigned int gmem_count;
static ino_t kvm_inodes[64], vm_inodes[64];
static unsigned int kvm_inode_count, vm_inode_count;

static struct {
	uint8_t *addr;
	size_t len;
	struct gmem *gmem;
} maps[MAPS];
static unsigned int map_count;

static ino_t inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

static bool is_in(const ino_t *list, unsigned int n, int fd)
{
	ino_t ino = inode_of(fd);

	for (unsigned int i = 0; i < n; i++)
		if (ino && list[i] == ino)
			return true;
	return false;
}

static bool is_kvm(int fd)
{
	return is_in(kvm_inodes, kvm_inode_count, fd);
}

static bool is_vm(int fd)
{
	return is_in(vm_inodes, vm_inode_count, fd);
}

static struct gmem *gmem_of(int fd)
{
	ino_t ino = inode_of(fd);

	for (unsigned int i = 0; i < gmem_count; i++)
		if (ino && gmems[i].ino == ino)
			return &gmems[i];
	return NULL;
}

static struct gmem *gmem_at(const void *addr)
{
	for (unsigned int i = map_count; i--;)
		if ((const uint8_t *)addr >= maps[i].addr &&
		    (const uint8_t *)addr < maps[i].addr + maps[i].len)
			return maps[i].gmem;
	return NULL;
}

static int64_t object(ino_t *list, unsigned int *n)
{
	int fd = memfd_create("fake", MFD_CLOEXEC);

	if (fd < 0)
		return -errno;
	list[(*n)++ % 64] = inode_of(fd);
	if (*n > 64)
		*n = 64;
	return fd;
}

static int64_t fake_open(const char *path, int flags)
{
	if (strcmp(path, "/dev/kvm"))
		return km_real_open(path, flags);
	if (kvm.open_error)
		return -kvm.open_error;
	return object(kvm_inodes, &kvm_inode_count);
}

/* ---- guest_memfd ---- */

static int64_t create_gmem(struct km_kvm_create_guest_memfd *g)
{
	int fd;

	if (kvm.no_gmem)
		return -ENOTTY;
	if (!g->size || g->size % PAGE || g->flags & ~kvm.gmem_flags)
		return -EINVAL;
	fd = memfd_create("fake-gmem", 0); /* KVM's stays open across exec, too */
	if (fd < 0 || ftruncate(fd, (off_t)g->size))
		return -errno;
	gmems[gmem_count % GMEMS] = (struct gmem){ .ino = inode_of(fd), .flags = g->flags };
	if (gmem_count < GMEMS - 1)
		gmem_count++;
	kvm.gmems++;
	return fd;
}

static int64_t fake_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
	struct gmem *g = gmem_of(fd);
	uint64_t pages;

	if (gmem_at(buf) && !(gmem_at(buf)->flags & KM_GUEST_MEMFD_FLAG_INIT_SHARED))
		return -EFAULT;
	if (!g)
		return km_real_pwrite(fd, buf, len, off);
	if (kvm.write == FAKE_WRITE_NONE)
		return -ESPIPE;
	if (kvm.write_flag && !(g->flags & kvm.write_flag))
		return -ENODEV;
	if (kvm.write != FAKE_WRITE_ANY && (off % PAGE || len % PAGE))
		return -EINVAL;
	pages = ((1ull << ((len + PAGE - 1) / PAGE)) - 1) << (off / PAGE);
	if (kvm.write == FAKE_WRITE_ONCE && g->written & pages)
		return -ENOSPC;
	g->written |= pages;
	return km_real_pwrite(fd, buf, len, off);
}

static int64_t fake_pread(int fd, void *buf, size_t len, uint64_t off)
{
	return gmem_of(fd) ? -EINVAL : km_real_pread(fd, buf, len, off);
}

static int64_t fake_seals(int fd)
{
	return gmem_of(fd) ? -EINVAL : km_real_fcntl_seals(fd);
}

static int64_t fake_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
	if (gmem_of(fd) && (off % PAGE || len % PAGE))
		return -EINVAL;
	return km_real_fallocate(fd, mode, off, len);
}

/* As Linux 6.8 to 6.18 show them. */
static int64_t fake_fstatfs(int fd, struct statfs *st)
{
	int64_t r = km_real_fstatfs(fd, st);

	if (r >= 0 && gmem_of(fd))
		st->f_type = ANON_INODE_FS_MAGIC;
	return r;
}

static int64_t fake_readlink(const char *path, char *buf, size_t len)
{
	static const char dir[] = "/proc/self/fd/";
	int64_t r = km_real_readlink(path, buf, len);

	if (r >= 0 && !strncmp(path, dir, strlen(dir)) &&
	    gmem_of((int)strtol(path + strlen(dir), NULL, 10)))
		r = snprintf(buf, len, "anon_inode:[kvm-gmem]");
	return r;
}

static void remember_map(uint8_t *addr, size_t len, struct gmem *g)
{
	for (unsigned int i = 0; i < map_count; i++) /* the address was unmapped meanwhile */
		if (addr < maps[i].addr + maps[i].len && maps[i].addr < addr + len)
			maps[i].len = 0;
	if (!g)
		return;
	maps[map_count % MAPS].addr = addr;
	maps[map_count % MAPS].len = len;
	maps[map_count % MAPS].gmem = g;
	if (map_count < MAPS - 1)
		map_count++;
}

static int64_t fake_mmap(size_t len, int prot, int flags, int fd, uint64_t off, void **ret)
{
	struct gmem *g = fd < 0 ? NULL : gmem_of(fd);
	int64_t r;

	if (g && !(g->flags & KM_GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;
	r = km_real_mmap(len, prot, flags, fd, off, ret);
	if (r >= 0)
		remember_map(*ret, len, g);
	return r < 0 ? r : 0;
}

static int64_t fake_mmap_near(size_t len, int prot, int flags, int fd, uint64_t off, void **addr)
{
	struct gmem *g = fd < 0 ? NULL : gmem_of(fd);
	int64_t r;

	if (g && !(g->flags & KM_GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;
	r = km_real_mmap_near(len, prot, flags, fd, off, addr);
	if (r >= 0)
		remember_map(*addr, len, g);
	return r;
}

static int64_t fake_madvise(void *addr, size_t len, int advice)
{
	struct gmem *g = gmem_at(addr);

	if (g && g->flags & kvm.no_gup_flag &&
	    (advice == KM_MADV_POPULATE_WRITE || advice == KM_MADV_POPULATE_READ))
		return -EFAULT;
	return km_real_madvise(addr, len, advice);
}

/* Memory of a guest_memfd that ignores policies shows them on the mapping they were set through
 * only. */
static int64_t fake_get_mempolicy(int *mode, unsigned long *nodes, unsigned long maxnode,
				  void *addr, unsigned long flags)
{
	if (addr && gmem_at(addr) && !kvm.gmem_numa) {
		*mode = KM_MPOL_DEFAULT;
		return 0;
	}
	return km_real_get_mempolicy(mode, nodes, maxnode, addr, flags);
}

/* ---- slots ---- */

static int64_t overlaps(const struct fake_slot *n)
{
	for (unsigned int i = 0; i < kvm.slot_count; i++) {
		const struct fake_slot *s = &kvm.slots[i];

		if (s->id != n->id && s->id >> 16 == n->id >> 16 && n->gpa < s->gpa + s->bytes &&
		    s->gpa < n->gpa + n->bytes)
			return -EEXIST;
	}
	return 0;
}

static int64_t remember(const struct fake_slot *n)
{
	unsigned int i = 0;

	while (i < kvm.slot_count && kvm.slots[i].id != n->id)
		i++;
	if (!n->bytes) {
		if (i == kvm.slot_count)
			return -EINVAL;
		kvm.slots[i] = kvm.slots[--kvm.slot_count];
		return 0;
	}
	if (i == FAKE_SLOTS)
		return -ENOMEM;
	if (i == kvm.slot_count)
		kvm.slot_count++;
	kvm.slots[i] = *n;
	return 0;
}

/* A number in use: only the flags and the address may change, of an HVA slot. */
static bool may_become(const struct fake_slot *n)
{
	for (unsigned int i = 0; i < kvm.slot_count; i++) {
		const struct fake_slot *s = &kvm.slots[i];

		if (s->id != n->id)
			continue;
		return s->bytes == n->bytes && s->hva == n->hva &&
		       !((s->flags ^ n->flags) & KVM_MEM_READONLY) &&
		       !((s->flags | n->flags) & KM_KVM_MEM_GUEST_MEMFD);
	}
	return true;
}

static int64_t set_slot(const struct fake_slot *n)
{
	int64_t r;

	kvm.slot = *n;
	kvm.slot_calls++;
	if (kvm.slot_error && n->bytes)
		return -kvm.slot_error;
	if (kvm.delete_error && !n->bytes)
		return -kvm.delete_error;
	if ((n->id & 0xffff) >= (uint32_t)kvm.max_slots || n->gpa % PAGE || n->bytes % PAGE ||
	    n->hva % PAGE)
		return -EINVAL;
	if (n->flags & KVM_MEM_READONLY && (kvm.no_readonly || n->flags & KM_KVM_MEM_GUEST_MEMFD))
		return -EINVAL;
	if (n->flags & KM_KVM_MEM_GUEST_MEMFD && n->bytes) {
		if (!gmem_of(n->gmem) || (n->flags & KVM_MEM_LOG_DIRTY_PAGES && !kvm.direct_dirty))
			return -EINVAL;
	}
	if (n->bytes && !may_become(n))
		return -EINVAL;
	r = n->bytes ? overlaps(n) : 0;
	return r ? r : remember(n);
}

static int64_t set_slot1(const struct kvm_userspace_memory_region *m)
{
	struct fake_slot n = {
		.id = m->slot,
		.flags = m->flags,
		.gpa = m->guest_phys_addr,
		.bytes = m->memory_size,
		.hva = m->userspace_addr,
		.gmem = -1,
	};

	return set_slot(&n);
}

static int64_t set_slot2(const struct km_kvm_userspace_memory_region2 *m)
{
	struct fake_slot n = {
		.v2 = true,
		.id = m->slot,
		.flags = m->flags,
		.gpa = m->guest_phys_addr,
		.bytes = m->memory_size,
		.hva = m->userspace_addr,
		.gmem = (int)m->guest_memfd,
		.gmem_offset = m->guest_memfd_offset,
	};

	for (unsigned int i = 0; i < 14; i++)
		if (m->pad2[i])
			return -EINVAL;
	return kvm.no_memory2 || m->pad1 ? -ENOTTY : set_slot(&n);
}

static int64_t set_attributes(const struct km_kvm_memory_attributes *a)
{
	if (kvm.set_attributes_error)
		return -kvm.set_attributes_error;
	if (!kvm.attributes)
		return -ENOTTY;
	kvm.attribute_calls++;
	kvm.attr_gpa = a->address;
	kvm.attr_bytes += a->size;
	kvm.attr_value = a->attributes;
	return 0;
}

/* ---- ioctls ---- */

static int64_t uffd_register(int fd, struct uffdio_register *r)
{
	if (gmem_at((void *)(uintptr_t)r->range.start) && !kvm.gmem_uffd)
		return -EINVAL;
	return km_real_ioctl(fd, UFFDIO_REGISTER, r);
}

static int64_t fake_ioctl(int fd, unsigned long request, void *arg)
{
	if (request == UFFDIO_REGISTER)
		return uffd_register(fd, arg);
	if (!is_vm(fd))
		return km_real_ioctl(fd, request, arg);
	switch (request) {
	case KVM_SET_USER_MEMORY_REGION:
		return set_slot1(arg);
	case KM_KVM_SET_USER_MEMORY_REGION2:
		return set_slot2(arg);
	case KM_KVM_CREATE_GUEST_MEMFD:
		return create_gmem(arg);
	case KM_KVM_SET_MEMORY_ATTRIBUTES:
		return set_attributes(arg);
	default:
		return -ENOTTY;
	}
}

static int64_t extension(unsigned long cap)
{
	switch (cap) {
	case KVM_CAP_NR_MEMSLOTS:
		return kvm.max_slots;
	case KM_KVM_CAP_GUEST_MEMFD_FLAGS:
		return (int64_t)kvm.gmem_advertised;
	case KM_KVM_CAP_MEMORY_ATTRIBUTES:
		return kvm.attributes;
	default:
		return 0;
	}
}

static int64_t create_vm(unsigned long type)
{
	int64_t fd;

	if (kvm.create_vm_error)
		return -kvm.create_vm_error;
	if (type > 63 || !(kvm.vm_types >> type & 1))
		return -EINVAL;
	fd = object(vm_inodes, &vm_inode_count);
	kvm.vms++;
	kvm.last_type = type;
	return fd;
}

static int64_t fake_ioctl_val(int fd, unsigned long request, unsigned long arg)
{
	if (is_kvm(fd) && request == KVM_GET_API_VERSION)
		return KVM_API_VERSION;
	if (is_kvm(fd) && request == KVM_CREATE_VM)
		return create_vm(arg);
	if ((is_kvm(fd) || is_vm(fd)) && request == KVM_CHECK_EXTENSION)
		return extension(arg);
	return is_vm(fd) ? -ENOTTY : km_real_ioctl_val(fd, request, arg);
}

void fake_kvm_reset(void)
{
	fake_reset();
	memset(&kvm, 0, sizeof(kvm));
	memset(maps, 0, sizeof(maps));
	gmem_count = map_count = kvm_inode_count = vm_inode_count = 0;
	kvm.vm_types = 1;
	kvm.max_slots = 32;
	kvm.gmem_flags = kvm.gmem_advertised = 3;
	fake.open = fake_open;
	fake.ioctl = fake_ioctl;
	fake.ioctl_val = fake_ioctl_val;
	fake.fstatfs = fake_fstatfs;
	fake.readlink = fake_readlink;
	fake.mmap = fake_mmap;
	fake.mmap_near = fake_mmap_near;
	fake.madvise = fake_madvise;
	fake.pwrite = fake_pwrite;
	fake.pread = fake_pread;
	fake.fcntl_seals = fake_seals;
	fake.fallocate = fake_fallocate;
	fake.get_mempolicy = fake_get_mempolicy;
}

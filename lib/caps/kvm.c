// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What KVM itself offers: slots, dirty logs, attributes. Slots are only ever set on the scratch VM.
 */
#include "caps/caps_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/uapi/kvm.h"

static int64_t extension(struct kvmem_caps *c, int vm_fd, unsigned long cap)
{
	return km_cap_step(c, km_sys_ioctl_val(vm_fd, KVM_CHECK_EXTENSION, cap));
}

void km_probe_kvm(struct kvmem_caps *c)
{
	int64_t fd = km_caps_kvm(c), version;

	if (fd < 0) {
		km_cap_none(c, KVMEM_CAP_KVM, fd, "opening /dev/kvm: %m%s",
			    fd == -EACCES || fd == -EPERM
				    ? "; give this user read and write access to it, usually by "
				      "the group kvm"
				    : "; load the module kvm_intel or kvm_amd, and pass the device "
				      "into containers");
		return;
	}
	version = km_cap_step(c, km_sys_ioctl_val((int)fd, KVM_GET_API_VERSION, 0));
	if (version != KVM_API_VERSION)
		km_cap_none(c, KVMEM_CAP_KVM, version < 0 ? version : 0,
			    "KVM_GET_API_VERSION says %lld, %d is needed", (long long)version,
			    KVM_API_VERSION);
	else
		km_cap_native(c, KVMEM_CAP_KVM, version,
			      "/dev/kvm opens and speaks API version %lld", (long long)version);
}

int64_t km_vm_slots(int vm_fd, const char *what)
{
	int64_t r;

	/* KVM_CHECK_EXTENSION works on /dev/kvm too, which alone knows its API version. */
	if (km_sys_ioctl_val(vm_fd, KVM_GET_API_VERSION, 0) >= 0)
		return km_fail(EBADF, "%s %d is not a KVM VM but /dev/kvm", what, vm_fd);
	r = km_sys_ioctl_val(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	if (r == -EIO)
		return km_fail(EBADF,
			       "%s %d is a KVM VM that another process made: KVM takes calls only "
			       "from the process that created the VM",
			       what, vm_fd);
	return r > 0 ? r : km_fail(EBADF, "%s %d is not a KVM VM", what, vm_fd);
}

static int64_t set_slot(struct kvmem_caps *c, int vm, void *hva, size_t bytes, uint32_t flags)
{
	struct kvm_userspace_memory_region m = {
		.flags = flags,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)hva,
	};

	return km_cap_step(c, km_sys_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &m));
}

/* A scratch VM and a page of memory, or every id given is unknown with the reason. */
static bool scratch_page(struct kvmem_caps *c, const uint32_t *ids, size_t n, int *ret_vm,
			 void **ret_page)
{
	int64_t vm = km_caps_scratch_vm(c), r = vm;

	if (vm >= 0)
		r = km_sys_mmap(km_sys_page_size(), PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, ret_page);
	for (size_t i = 0; r < 0 && i < n; i++)
		km_cap_unknown(c, ids[i], r, "no scratch VM to set a memory slot on: %m");
	*ret_vm = (int)vm;
	return r >= 0;
}

static void probe_readonly(struct kvmem_caps *c, int vm, void *page, size_t size)
{
	int64_t r = set_slot(c, vm, page, size, KVM_MEM_READONLY);

	if (r < 0)
		km_cap_none(c, KVMEM_CAP_READONLY_MEM, r,
			    "KVM_SET_USER_MEMORY_REGION with KVM_MEM_READONLY: %m");
	else
		km_cap_native(c, KVMEM_CAP_READONLY_MEM, 0,
			      "a slot with KVM_MEM_READONLY can be set");
	if (r >= 0)
		set_slot(c, vm, page, 0, 0);
}

static void probe_memory2(struct kvmem_caps *c, int vm, void *page, size_t size)
{
	struct km_kvm_userspace_memory_region2 m = {
		.memory_size = size,
		.userspace_addr = (uintptr_t)page,
	};
	int64_t r = km_sys_ioctl(vm, KM_KVM_SET_USER_MEMORY_REGION2, &m);

	if (r < 0)
		km_cap_none(c, KVMEM_CAP_USER_MEMORY2, r,
			    "KVM_SET_USER_MEMORY_REGION2: %m; Linux 6.8 and later have it");
	else
		km_cap_native(c, KVMEM_CAP_USER_MEMORY2, 0,
			      "a slot can be set by KVM_SET_USER_MEMORY_REGION2");
	if (r >= 0)
		set_slot(c, vm, page, 0, 0);
}

void km_probe_slots(struct kvmem_caps *c)
{
	static const uint32_t ids[] = { KVMEM_CAP_MEMORY_SLOTS, KVMEM_CAP_READONLY_MEM,
					KVMEM_CAP_USER_MEMORY2 };
	size_t size = km_sys_page_size();
	int64_t slots;
	void *page;
	int vm;

	if (!scratch_page(c, ids, KM_ARRAY_SIZE(ids), &vm, &page))
		return;
	slots = extension(c, (int)km_caps_vm(c), KVM_CAP_NR_MEMSLOTS);
	if (slots > 0)
		km_cap_native(c, KVMEM_CAP_MEMORY_SLOTS, slots,
			      "KVM_CAP_NR_MEMSLOTS says %lld slots per address space",
			      (long long)slots);
	else
		km_cap_unknown(c, KVMEM_CAP_MEMORY_SLOTS, slots, "KVM_CAP_NR_MEMSLOTS: %m");
	probe_readonly(c, vm, page, size);
	probe_memory2(c, vm, page, size);
	km_sys_munmap(page, size);
}

/* ---- slots over a guest_memfd ---- */

static int64_t set_direct(struct kvmem_caps *c, int vm, int gmem, void *hva, size_t bytes,
			  uint32_t flags)
{
	struct km_kvm_userspace_memory_region2 m = {
		.flags = flags | (uint32_t)KM_KVM_MEM_GUEST_MEMFD,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)hva,
		.guest_memfd = (uint32_t)gmem,
	};

	return km_cap_step(c, km_sys_ioctl(vm, KM_KVM_SET_USER_MEMORY_REGION2, &m));
}

static void say_slot(struct kvmem_caps *c, uint32_t id, int64_t r, const char *what,
		     const char *why_not)
{
	if (r < 0)
		km_cap_none(c, id, r, "%s: %m%s", what, why_not);
	else
		km_cap_native(c, id, 0, "%s can be set", what);
}

static void probe_direct(struct kvmem_caps *c, int vm, int gmem, void *map, size_t size)
{
	int64_t r = set_direct(c, vm, gmem, map, size, 0);

	say_slot(c, KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT, r, "a slot with KVM_MEM_GUEST_MEMFD", "");
	if (r >= 0)
		set_direct(c, vm, gmem, map, 0, 0);
	r = set_direct(c, vm, gmem, map, size, KVM_MEM_LOG_DIRTY_PAGES);
	say_slot(c, KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY, r,
		 "a slot with KVM_MEM_GUEST_MEMFD and KVM_MEM_LOG_DIRTY_PAGES",
		 "; use a slot over the mapping of the guest_memfd instead");
	if (r >= 0)
		set_direct(c, vm, gmem, map, 0, 0);
}

/* Such a slot can be set whenever the file can be mapped; a vCPU gets at its pages by pinning them.
 */
static void probe_hva(struct kvmem_caps *c, int vm, void *map, size_t size)
{
	const struct km_cap_entry *gup = km_cap_need(c, KVMEM_CAP_GUEST_MEMFD_GUP);
	static const struct {
		uint32_t id, flags;
		const char *what;
	} tries[] = {
		{ KVMEM_CAP_GUEST_MEMFD_HVA_SLOT, 0, "a slot over the mapping of a guest_memfd" },
		{ KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY, KVM_MEM_LOG_DIRTY_PAGES,
		  "a slot over the mapping of a guest_memfd with KVM_MEM_LOG_DIRTY_PAGES" },
	};

	for (size_t i = 0; i < KM_ARRAY_SIZE(tries); i++) {
		int64_t r;

		if (!map) {
			km_cap_none(c, tries[i].id, 0, "a guest_memfd cannot be mapped here: %s",
				    km_cap_need(c, KVMEM_CAP_GUEST_MEMFD_MMAP)->reason);
			continue;
		}
		if (gup->support == KVMEM_SUPPORT_NONE) {
			km_cap_none(c, tries[i].id, -gup->error,
				    "%s: vCPUs cannot fault in its pages; %s", tries[i].what,
				    gup->reason);
			continue;
		}
		r = set_slot(c, vm, map, size, tries[i].flags);
		say_slot(c, tries[i].id, r, tries[i].what, "");
		if (r >= 0)
			set_slot(c, vm, map, 0, 0);
	}
}

void km_probe_gmem_slots(struct kvmem_caps *c)
{
	static const uint32_t ids[] = {
		KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT,
		KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY,
		KVMEM_CAP_GUEST_MEMFD_HVA_SLOT,
		KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY,
	};
	const struct km_cap_entry *gmem_cap = km_cap_need(c, KVMEM_CAP_GUEST_MEMFD);
	int64_t vm, gmem;
	size_t size = km_sys_page_size();
	uint64_t flags = km_gmem_flags(c);
	void *map = NULL;

	vm = km_caps_scratch_vm(c);
	gmem = vm < 0 ? vm : km_gmem_create((int)vm, size, flags);
	if (gmem < 0) {
		for (size_t i = 0; i < KM_ARRAY_SIZE(ids); i++)
			if (gmem_cap->support == KVMEM_SUPPORT_NONE)
				km_cap_none(c, ids[i], gmem_cap->error, "no guest_memfd: %s",
					    gmem_cap->reason);
			else
				km_cap_unknown(c, ids[i], gmem,
					       "no scratch guest_memfd to try a slot with: %m");
		return;
	}
	if (km_cap_is_native(c, KVMEM_CAP_GUEST_MEMFD_MMAP))
		km_cap_step(c, km_sys_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, (int)gmem, 0,
					   &map));
	probe_direct(c, (int)vm, (int)gmem, map, size);
	probe_hva(c, (int)vm, map, size);
	km_sys_munmap(map, size);
	km_sys_close((int)gmem);
}

/* ---- dirty logs, attributes ---- */

static void probe_ring(struct kvmem_caps *c, int vm, uint32_t id, unsigned long cap,
		       const char *name)
{
	int64_t bytes = extension(c, vm, cap);

	if (bytes > 0)
		km_cap_native(c, id, bytes, "%s: rings of up to %lld bytes, %lld entries", name,
			      (long long)bytes,
			      (long long)bytes / (long long)sizeof(struct kvm_dirty_gfn));
	else
		km_cap_none(c, id, bytes, "%s is not offered by this KVM%s", name,
			    id == KVMEM_CAP_DIRTY_RING
				    ? ": on x86 it needs TSO, elsewhere the ACQ_REL form"
				    : "");
}

static void probe_manual(struct kvmem_caps *c, int vm)
{
	int64_t flags = extension(c, vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	if (flags > 0)
		km_cap_native(c, KVMEM_CAP_DIRTY_MANUAL_PROTECT, flags,
			      "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 with flags 0x%llx",
			      (long long)flags);
	else
		km_cap_none(c, KVMEM_CAP_DIRTY_MANUAL_PROTECT, flags,
			    "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is not offered by this KVM");
	if (flags > 0 && flags & KVM_DIRTY_LOG_INITIALLY_SET)
		km_cap_native(
			c, KVMEM_CAP_DIRTY_INITIALLY_SET, KVM_DIRTY_LOG_INITIALLY_SET,
			"KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 offers KVM_DIRTY_LOG_INITIALLY_SET");
	else
		km_cap_none(c, KVMEM_CAP_DIRTY_INITIALLY_SET, 0,
			    "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 does not offer "
			    "KVM_DIRTY_LOG_INITIALLY_SET");
}

void km_probe_dirty(struct kvmem_caps *c)
{
	static const uint32_t ids[] = {
		KVMEM_CAP_DIRTY_RING,
		KVMEM_CAP_DIRTY_RING_ACQ_REL,
		KVMEM_CAP_DIRTY_RING_WITH_BITMAP,
		KVMEM_CAP_DIRTY_MANUAL_PROTECT,
		KVMEM_CAP_DIRTY_INITIALLY_SET,
	};
	int64_t vm = km_caps_vm(c), r;

	if (vm < 0) {
		for (size_t i = 0; i < KM_ARRAY_SIZE(ids); i++)
			km_cap_unknown(c, ids[i], vm, "no VM to ask: %m");
		return;
	}
	probe_ring(c, (int)vm, KVMEM_CAP_DIRTY_RING, KVM_CAP_DIRTY_LOG_RING,
		   "KVM_CAP_DIRTY_LOG_RING");
	probe_ring(c, (int)vm, KVMEM_CAP_DIRTY_RING_ACQ_REL, KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
		   "KVM_CAP_DIRTY_LOG_RING_ACQ_REL");
	r = extension(c, (int)vm, KM_KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP);
	if (r > 0)
		km_cap_native(c, KVMEM_CAP_DIRTY_RING_WITH_BITMAP, r,
			      "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP: some writes go to a bitmap "
			      "beside the ring");
	else
		km_cap_none(c, KVMEM_CAP_DIRTY_RING_WITH_BITMAP, r,
			    "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP is not offered: the ring alone has "
			    "all guest writes");
	probe_manual(c, (int)vm);
}

void km_probe_attributes(struct kvmem_caps *c)
{
	int64_t vm = km_caps_vm(c), r;

	if (vm < 0) {
		km_cap_unknown(c, KVMEM_CAP_MEMORY_ATTRIBUTES, vm, "no VM to ask: %m");
		return;
	}
	r = extension(c, (int)vm, KM_KVM_CAP_MEMORY_ATTRIBUTES);
	if (r > 0)
		km_cap_native(c, KVMEM_CAP_MEMORY_ATTRIBUTES, r,
			      "KVM_SET_MEMORY_ATTRIBUTES takes the attributes 0x%llx on this VM",
			      (long long)r);
	else
		km_cap_none(c, KVMEM_CAP_MEMORY_ATTRIBUTES, r,
			    "KVM_CAP_MEMORY_ATTRIBUTES is 0 for a VM of type %llu: private memory "
			    "needs a "
			    "protected machine type",
			    (unsigned long long)c->vm_type);
}

void km_probe_pre_fault(struct kvmem_caps *c)
{
	int64_t vm = km_caps_vm(c), r;

	if (vm < 0) {
		km_cap_unknown(c, KVMEM_CAP_PRE_FAULT, vm, "no VM to ask: %m");
		return;
	}
	r = extension(c, (int)vm, KM_KVM_CAP_PRE_FAULT_MEMORY);
	if (r > 0)
		km_cap_native(c, KVMEM_CAP_PRE_FAULT, r, "KVM_PRE_FAULT_MEMORY is offered");
	else
		km_cap_none(c, KVMEM_CAP_PRE_FAULT, r,
			    "KVM_PRE_FAULT_MEMORY is not offered by this KVM: it "
			    "needs Linux 6.11 or later and nested paging (EPT, NPT)");
}

/*
 * Usage: plain-vm CODE close|io_uring
 *
 * The least that a program can do to run a guest on KVM: a VM with interrupt controllers, 128 MiB of memory and one
 * vCPU, which runs the 32-bit code of the file CODE at 1 MiB until that resets the machine by port 0x64. What the code
 * writes to the serial port goes to standard output. Nothing is checked that a benchmark does not need.
 *
 * With `close`, the VM is freed as the program ends. With `io_uring`, a ring holds the VM's last descriptor, and the
 * kernel frees the VM in a thread of its own while the program is gone already.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MEMORY = 128 << 20, HUGE_PAGE = 2 << 20, ENTRY = 1 << 20, SERIAL = 0x3f8, RESET = 0x64 };

static int call(int descriptor, unsigned long request, void *argument, const char *what)
{
	int result = ioctl(descriptor, request, argument);

	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void keep_in_ring(int vm)
{
	struct io_uring_params parameters = {0};
	long ring = syscall(SYS_io_uring_setup, 1, &parameters);

	if (ring < 0 || syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &vm, 1) < 0)
		err(1, "io_uring");
}

int main(int argc, char **argv)
{
	struct kvm_segment flat = {.limit = UINT32_MAX, .selector = 0x10, .present = 1, .s = 1, .g = 1, .db = 1};
	struct kvm_regs registers = {.rip = ENTRY, .rflags = 2};
	struct kvm_sregs system;

	if (argc != 3)
		errx(2, "usage: plain-vm CODE close|io_uring");
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(1, "/dev/kvm");
	int vm = call(kvm, KVM_CREATE_VM, 0, "KVM_CREATE_VM");
	if (!strcmp(argv[2], "io_uring"))
		keep_in_ring(vm);

	/* At a multiple of a huge page, and of huge pages, as every VMM that cares does it. */
	char *memory = mmap(0, MEMORY + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	memory = (char *)(((uintptr_t)memory + HUGE_PAGE - 1) & -(uintptr_t)HUGE_PAGE);
	madvise(memory, MEMORY, MADV_HUGEPAGE);
	struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory};
	call(vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
	call(vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000, "KVM_SET_TSS_ADDR");
	call(vm, KVM_CREATE_IRQCHIP, 0, "KVM_CREATE_IRQCHIP");

	int code = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (code < 0 || read(code, memory + ENTRY, 4096) <= 0)
		err(1, "%s", argv[1]);

	int vcpu = call(vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
	int size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap of the vCPU");
	call(vcpu, KVM_GET_SREGS, &system, "KVM_GET_SREGS");
	flat.type = 3;
	system.ds = system.es = system.fs = system.gs = system.ss = flat;
	flat.type = 11;
	system.cs = flat;
	system.cr0 = 0x11;
	call(vcpu, KVM_SET_SREGS, &system, "KVM_SET_SREGS");
	call(vcpu, KVM_SET_REGS, &registers, "KVM_SET_REGS");

	for (;;) {
		call(vcpu, KVM_RUN, 0, "KVM_RUN");
		if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT)
			errx(1, "exit %u", run->exit_reason);
		if (run->io.port == RESET)
			return 0;
		if (run->io.port == SERIAL && write(1, (char *)run + run->io.data_offset, 1) != 1)
			err(1, "standard output");
	}
}

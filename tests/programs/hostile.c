// What a container's program tries against its VM. `hostile ATTACK` prints why it failed, or "allowed".

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// Takes descriptors until there are no more, of files and of pipes full of data, and keeps them.
static void take_descriptors(void) {
    static const char page[4096];
    int ends[2];
    while (pipe2(ends, O_NONBLOCK) == 0)
        while (write(ends[1], page, sizeof page) > 0)
            ;
    while (open("/dev/null", O_RDONLY) >= 0)
        ;
    pause();
}

// Takes memory until it is killed.
static void take_memory(void) {
    for (;;) {
        char *memory = malloc(1 << 20);
        if (memory)
            memset(memory, 1, 1 << 20);
    }
}

// Keeps `most` processes at it, whatever becomes of them.
static void repeat(void (*work)(void), int most) {
    for (int running = 0;; running -= wait(NULL) > 0) {
        for (pid_t child = 0; running < most; running++) {
            if ((child = fork()) == 0)
                work();
            if (child < 0)
                break;
        }
    }
}

// The call by the numbers of 32-bit programs. A kernel that has none for them ends the process.
static long socket_of_32_bits(void) {
    long result = 359;
    __asm__ volatile("int $0x80" : "+a"(result) : "b"(AF_VSOCK), "c"(SOCK_STREAM), "d"(0) : "memory");
    errno = (int)-result;
    return (int)result;
}

static long attack(const char *name) {
    if (strcmp(name, "vsock") == 0)
        return socket(AF_VSOCK, SOCK_STREAM, 0);
    if (strcmp(name, "vsock-datagrams") == 0)
        return socket(AF_VSOCK, SOCK_DGRAM, 0);
    if (strcmp(name, "vsock-pair") == 0) {
        int pair[2];
        return socketpair(AF_VSOCK, SOCK_STREAM, 0, pair);
    }
    if (strcmp(name, "vsock-x32") == 0)
        return syscall(0x40000000 | SYS_socket, AF_VSOCK, SOCK_STREAM, 0);
    if (strcmp(name, "vsock-32") == 0) {
        int status = 0;
        pid_t child = fork();
        if (child == 0)
            _exit(socket_of_32_bits() < 0 ? 1 : 0);
        if (child > 0 && waitpid(child, &status, 0) == child && status != 0) {
            errno = ENOSYS;
            return -1;
        }
        return 0;
    }
    if (strcmp(name, "vsock-device") == 0)
        return open("/dev/vsock", O_RDONLY);
    if (strcmp(name, "ptrace") == 0)
        return ptrace(PTRACE_SEIZE, 1, 0, 0);
    if (strcmp(name, "memory") == 0)
        return open("/proc/1/mem", O_RDWR);
    if (strcmp(name, "module") == 0)
        return syscall(SYS_finit_module, open("/proc/self/exe", O_RDONLY), "", 0);
    if (strcmp(name, "bpf") == 0)
        return syscall(SYS_bpf, 0, 0, 0);
    if (strcmp(name, "mounts") == 0)
        return syscall(SYS_fsopen, "tmpfs", 0);
    if (strcmp(name, "handle") == 0) {
        struct { unsigned bytes; int type; unsigned char id[8]; } handle = {8, 1, {2}};
        return syscall(SYS_open_by_handle_at, AT_FDCWD, &handle, O_RDONLY);
    }
    if (strcmp(name, "namespace") == 0)
        return syscall(SYS_unshare, 0x10000000 /* CLONE_NEWUSER */);
    if (strcmp(name, "keys") == 0)
        return syscall(SYS_keyctl, 0, -5, 1);
    if (strcmp(name, "ports") == 0)
        return syscall(SYS_iopl, 3);
    errno = EINVAL;
    return -1;
}

int main(int argc, char **argv) {
    const char *name = argc == 2 ? argv[1] : "";
    // All of them fork until they are killed.
    while (strcmp(name, "bomb") == 0)
        fork();
    if (strcmp(name, "descriptors") == 0)
        repeat(take_descriptors, 32);
    // More of them leave one emulated processor to nothing else for minutes.
    if (strcmp(name, "much-memory") == 0)
        repeat(take_memory, 8);
    puts(attack(name) < 0 ? strerror(errno) : "allowed");
    return 0;
}

// What a container's program tries against its VM. `hostile ATTACK` prints why it failed, or "allowed".

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static long attack(const char *name) {
    if (strcmp(name, "vsock") == 0)
        return socket(AF_VSOCK, SOCK_STREAM, 0);
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
    puts(attack(name) < 0 ? strerror(errno) : "allowed");
    return 0;
}

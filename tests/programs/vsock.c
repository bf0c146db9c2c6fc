/*
 * What tests run in a guest to use vsock, as busybox has nothing for it:
 *
 *   vsock connect PORT       connects to the host, then standard input goes to the socket and the socket to standard
 *                            output, until both have ended; each end ends one direction of the connection
 *   vsock listen PORT        waits for one connection of the host, then the same
 *   vsock echo PORT          sends back what comes, on all connections of the host, forever
 *   vsock many PORT COUNT    has COUNT connections to the host at once and sees that each gets back what it sent
 *   vsock hold PORT COUNT    opens COUNT connections to the host, says so, and keeps them until it is killed
 *
 *   vsock unix PATH          the same as connect, to the Unix socket at PATH
 *
 * What there is to say goes to standard error; what fails is said by the name of the call and of its error, as in
 * "connect: ECONNRESET".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#define MOST 1200
static char buffer[65536];

static void fail(const char *call)
{
	fprintf(stderr, "%s: %s\n", call, strerrorname_np(errno));
	exit(1);
}

static int vsock(void)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (fd < 0)
		fail("socket");
	return fd;
}

static int dial(unsigned int port)
{
	struct sockaddr_vm to = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port };
	struct timeval patience = { .tv_sec = 30 };
	int fd = vsock();
	/* Two seconds are short where the processor is emulated. */
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		fail("connect");
	return fd;
}

static int dial_unix(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0)
		fail("socket");
	snprintf(to.sun_path, sizeof(to.sun_path), "%s", path);
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		fail("connect");
	return fd;
}

static int listener(unsigned int port)
{
	struct sockaddr_vm at = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
	int fd = vsock();
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)))
		fail("bind");
	if (listen(fd, MOST))
		fail("listen");
	fprintf(stderr, "listening\n");
	return fd;
}

static void write_all(int fd, const char *bytes, ssize_t length)
{
	while (length > 0) {
		ssize_t written = write(fd, bytes, length);
		if (written < 0)
			fail("write");
		bytes += written;
		length -= written;
	}
}

static void relay(int socket)
{
	struct pollfd fds[2] = { { .fd = 0, .events = POLLIN }, { .fd = socket, .events = POLLIN } };
	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		if (poll(fds, 2, -1) < 0)
			fail("poll");
		if (fds[0].revents) {
			ssize_t length = read(0, buffer, sizeof(buffer));
			if (length > 0) {
				write_all(socket, buffer, length);
			} else {
				shutdown(socket, SHUT_WR);
				fds[0].fd = -1;
			}
		}
		if (fds[1].revents) {
			ssize_t length = read(socket, buffer, sizeof(buffer));
			if (length < 0)
				fail("read");
			write_all(1, buffer, length);
			if (length == 0)
				fds[1].fd = -1;
		}
	}
}

static void echo(int socket)
{
	static struct pollfd fds[MOST];
	int count = 1;
	fds[0] = (struct pollfd){ .fd = socket, .events = POLLIN };
	for (;;) {
		if (poll(fds, count, -1) < 0)
			fail("poll");
		for (int i = count - 1; i > 0; i--) {
			if (!fds[i].revents)
				continue;
			ssize_t length = read(fds[i].fd, buffer, sizeof(buffer));
			if (length > 0 && write(fds[i].fd, buffer, length) == length)
				continue;
			close(fds[i].fd);
			fds[i] = fds[--count];
		}
		if (fds[0].revents && count < MOST) {
			int fd = accept(socket, NULL, NULL);
			if (fd < 0)
				fail("accept");
			fds[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
		}
	}
}

static void many(unsigned int port, int count, int hold)
{
	static int fds[MOST];
	char line[32], answer[32];
	for (int i = 0; i < count; i++)
		fds[i] = dial(port);
	fprintf(stderr, "connected=%d\n", count);
	while (hold)
		pause();
	for (int i = 0; i < count; i++)
		write_all(fds[i], line, snprintf(line, sizeof(line), "%010d", i));
	for (int i = 0; i < count; i++) {
		snprintf(line, sizeof(line), "%010d", i);
		if (recv(fds[i], answer, 10, MSG_WAITALL) != 10 || memcmp(line, answer, 10)) {
			fprintf(stderr, "connection %d has no echo\n", i);
			exit(1);
		}
	}
	fprintf(stderr, "echoes=%d\n", count);
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	unsigned int port = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
	int count = argc > 3 ? atoi(argv[3]) : 1;
	struct rlimit files = { 4096, 4096 };

	signal(SIGPIPE, SIG_IGN);
	setrlimit(RLIMIT_NOFILE, &files);
	if (!strcmp(what, "connect")) {
		relay(dial(port));
	} else if (!strcmp(what, "unix")) {
		relay(dial_unix(argv[2]));
	} else if (!strcmp(what, "listen")) {
		int fd = accept(listener(port), NULL, NULL);
		if (fd < 0)
			fail("accept");
		relay(fd);
	} else if (!strcmp(what, "echo")) {
		echo(listener(port));
	} else if (!strcmp(what, "many") || !strcmp(what, "hold")) {
		many(port, count < MOST ? count : MOST, !strcmp(what, "hold"));
	} else {
		fprintf(stderr, "usage: vsock connect|listen|echo|many|hold PORT [COUNT], or vsock unix PATH\n");
		return 2;
	}
	return 0;
}

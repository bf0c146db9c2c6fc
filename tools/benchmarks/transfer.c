/*
 * What tools/bench moves bytes with, in the guest and on its host:
 *
 *   transfer tcp ADDRESS PORT WHAT COUNT     the guest's side
 *   transfer vsock CID PORT WHAT COUNT       the same
 *   transfer serve WHAT COUNT                the host's side, on the socket that is its standard input; says how many
 *                                            seconds it took
 *
 * WHAT is of the guest: it sends COUNT bytes, receives COUNT bytes, or sends a byte and awaits one (ping) COUNT times.
 * It begins with a byte of the host, and ends when the host knows that all has arrived.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char buffer[128 << 10];

static void fail(const char *call)
{
	perror(call);
	exit(1);
}

static void give(int fd, unsigned long count)
{
	while (count > 0) {
		ssize_t length = write(fd, buffer, count < sizeof(buffer) ? count : sizeof(buffer));
		if (length < 0)
			fail("write");
		count -= length;
	}
}

static void take(int fd, unsigned long count)
{
	while (count > 0) {
		ssize_t length = read(fd, buffer, count < sizeof(buffer) ? count : sizeof(buffer));
		if (length < 0)
			fail("read");
		if (length == 0) {
			fprintf(stderr, "the other side has ended early\n");
			exit(1);
		}
		count -= length;
	}
}

static int dial(const char *family, const char *host, const char *port)
{
	struct sockaddr_in tcp = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	struct sockaddr_vm vsock = { .svm_family = AF_VSOCK, .svm_cid = atoi(host), .svm_port = atoi(port) };
	struct timeval patience = { .tv_sec = 30 };
	int one = 1;
	int is_tcp = !strcmp(family, "tcp");
	int fd = socket(is_tcp ? AF_INET : AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		fail("socket");
	if (is_tcp) {
		if (inet_pton(AF_INET, host, &tcp.sin_addr) != 1)
			fail("inet_pton");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (connect(fd, (struct sockaddr *)&tcp, sizeof(tcp)))
			fail("connect");
	} else {
		/* Two seconds are short where the processor is emulated. */
		setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof(patience));
		if (connect(fd, (struct sockaddr *)&vsock, sizeof(vsock)))
			fail("connect");
	}
	return fd;
}

static void guest(int fd, const char *what, unsigned long count)
{
	take(fd, 1);
	if (!strcmp(what, "send")) {
		give(fd, count);
		while (read(fd, buffer, sizeof(buffer)) > 0)
			;
	} else if (!strcmp(what, "receive")) {
		take(fd, count);
		give(fd, 1);
	} else {
		for (; count > 0; count--) {
			give(fd, 1);
			take(fd, 1);
		}
	}
}

static void serve(const char *what, unsigned long count)
{
	struct timespec began, ended;
	int one = 1;

	setsockopt(0, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* fails on a Unix socket, which needs no such thing */
	clock_gettime(CLOCK_MONOTONIC, &began);
	give(0, 1);
	if (!strcmp(what, "send")) {
		take(0, count);
	} else if (!strcmp(what, "receive")) {
		give(0, count);
		take(0, 1);
	} else {
		for (; count > 0; count--) {
			take(0, 1);
			give(0, 1);
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%.6f\n", ended.tv_sec - began.tv_sec + (ended.tv_nsec - began.tv_nsec) / 1e9);
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && !strcmp(argv[1], "serve")) {
		serve(argv[2], strtoul(argv[3], NULL, 10));
	} else if (argc == 6) {
		guest(dial(argv[1], argv[2], argv[3]), argv[4], strtoul(argv[5], NULL, 10));
	} else {
		fprintf(stderr, "usage: transfer tcp|vsock HOST PORT send|receive|ping COUNT, or transfer serve WHAT COUNT\n");
		return 2;
	}
	return 0;
}

/*
 * What tests run in a guest to answer datagrams, for which busybox has nothing:
 *
 *   udp PORT      says that it is ready, then sends back each datagram behind the words "the guest has "
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void fail(const char *call)
{
	perror(call);
	exit(1);
}

int main(int argc, char **argv)
{
	static const char words[] = "the guest has ";
	static char answer[65536];
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0)
		fail("socket");
	if (bind(fd, (struct sockaddr *)&here, sizeof here))
		fail("bind");
	memcpy(answer, words, sizeof words - 1);
	puts("udp: ready");
	fflush(stdout);
	for (;;) {
		struct sockaddr_in peer;
		socklen_t length = sizeof peer;
		ssize_t got = recvfrom(fd, answer + sizeof words - 1, 1024, 0, (struct sockaddr *)&peer, &length);

		if (got < 0)
			fail("recvfrom");
		if (sendto(fd, answer, sizeof words - 1 + got, 0, (struct sockaddr *)&peer, length) < 0)
			fail("sendto");
	}
}

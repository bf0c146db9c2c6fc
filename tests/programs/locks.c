/*
 * What tests run to see who is kept out by a lock of a file:
 *
 *   locks posix|flock FILE [COMMAND...]
 *
 * takes the lock, fcntl's or flock's, and does not wait for it. It says "locked", or "held" where another one has the
 * lock, which is exit code 1. A COMMAND is run with the lock, which survives that.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd, failed;

	if (argc < 3) {
		fprintf(stderr, "usage: locks posix|flock FILE [COMMAND...]\n");
		return 2;
	}
	fd = open(argv[2], O_RDWR | O_CREAT, 0666);
	if (fd < 0) {
		perror(argv[2]);
		return 2;
	}
	failed = strcmp(argv[1], "posix") ? flock(fd, LOCK_EX | LOCK_NB) : fcntl(fd, F_SETLK, &whole);
	if (failed && errno != EAGAIN && errno != EACCES) {
		perror(argv[1]);
		return 2;
	}
	puts(failed ? "held" : "locked");
	fflush(stdout);
	if (failed || argc == 3)
		return failed ? 1 : 0;
	execvp(argv[3], argv + 3);
	perror(argv[3]);
	return 2;
}

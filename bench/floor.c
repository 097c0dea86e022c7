// SPDX-License-Identifier: Apache-2.0
// The floor: what one call of the plugin asks of the kernel, with nothing around it.
//
// Reads a recording (bench/recording.py) from standard input: the system calls that the plugin made for
// an earlier pod, with this pod's names and addresses put in. Makes the same calls in the same order.
// Only the link indexes, which the kernel chooses, are filled in here.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct step {
	uint8_t call;
	uint8_t fd;
	uint16_t patches;
	uint32_t argument;
	uint32_t size;
} __attribute__((packed));

struct patch {
	uint16_t offset;
	uint16_t end;
} __attribute__((packed));

enum { HOST_LINK, POD_LINK };

static char recording[1 << 16], received[32768], text[256];
static uint32_t indexes[2];
static pid_t child;

static void die(const struct step *step) {
	fprintf(stderr, "floor: step %c on descriptor %d: %s\n", step->call, step->fd, strerror(errno));
	_exit(1);
}

// The indexes of both links of a veth pair, from the kernel's description of one.
static void learn(void) {
	struct nlmsghdr *header = (void *)received;
	struct ifinfomsg *link = NLMSG_DATA(header);
	int left = (int)IFLA_PAYLOAD(header);
	indexes[HOST_LINK] = (uint32_t)link->ifi_index;
	for (struct rtattr *attr = IFLA_RTA(link); RTA_OK(attr, left); attr = RTA_NEXT(attr, left))
		if (attr->rta_type == IFLA_LINK)
			memcpy(&indexes[POD_LINK], RTA_DATA(attr), 4);
}

// Ask until the kernel refuses: then the link is gone.
static void until_refused(const struct step *step, const char *data) {
	int acknowledged = ((const struct nlmsghdr *)data)->nlmsg_flags & NLM_F_ACK;
	struct nlmsghdr *header = (void *)received;
	for (;;) {
		if (send(step->fd, data, step->size, 0) < 0)
			die(step);
		do {
			if (recv(step->fd, received, sizeof received, 0) < 0)
				die(step);
		} while (acknowledged && header->nlmsg_type != NLMSG_ERROR);
		if (header->nlmsg_type == NLMSG_ERROR && ((struct nlmsgerr *)NLMSG_DATA(header))->error)
			return;
		waitpid(child, NULL, WNOHANG);
		sched_yield();
	}
}

static long run(const struct step *step, const char *data) {
	struct stat status;
	int option[3];
	switch (step->call) {
	case 'S': // socket(2): domain, type, protocol
		memcpy(option, data, sizeof option);
		return socket(option[0], option[1], option[2]);
	case 'O': // setsockopt(2): level, name, value
		memcpy(option, data, sizeof option);
		return setsockopt(step->fd, option[0], option[1], &option[2], sizeof option[2]);
	case 'X':
		return send(step->fd, data, step->size, 0);
	case 'V':
		if (recv(step->fd, received, sizeof received, 0) < 0 && errno != EAGAIN)
			return -1;
		return 0;
	case 'Q': // poll(2) for input; the argument is the timeout
		return poll(&(struct pollfd){step->fd, POLLIN, 0}, 1, (int)step->argument);
	case 'A': // fsopen(2): the kind of file system
		return fsopen(data, step->argument);
	case 'G': // fsconfig(2): a command without a key
		return fsconfig(step->fd, step->argument, NULL, NULL, 0);
	case 'M': // fsmount(2): flags, attributes
		memcpy(option, data, 2 * sizeof *option);
		return fsmount(step->fd, (unsigned)option[0], (unsigned)option[1]);
	case 'P': // openat(2); without a descriptor the path is whole
		return openat(step->fd ? step->fd : AT_FDCWD, data, (int)step->argument);
	case 'R': // read(2) too, which no file is asked for twice
		return pread(step->fd, text, sizeof text, 0);
	case 'W':
		return write(step->fd, data, step->size);
	case 'C':
		return close(step->fd);
	case 'T':
		return stat(data, &status);
	case 'F':
		return fstat(step->fd, &status);
	case 'I':
		return ioctl(step->fd, step->argument, &(int){1});
	case 'N':
		return setns(step->fd, (int)step->argument);
	case 'D':
		return setsid();
	case 'L':
		learn();
		return 0;
	case 'U':
		until_refused(step, data);
		return 0;
	case 'E': // the end of the child's part
		_exit(0);
	default:
		errno = EINVAL;
		return -1;
	}
}

int main(void) {
	size_t end = 0;
	for (ssize_t size; (size = read(0, recording + end, sizeof recording - end)) > 0; end += (size_t)size)
		;
	alarm(5); // a recording that does not match must not hang
	for (size_t at = 0; at < end;) {
		struct step *step = (void *)(recording + at);
		struct patch *patches = (void *)(step + 1);
		char *data = (char *)(patches + step->patches);
		at = (size_t)(data + step->size - recording);
		for (int i = 0; i < step->patches; i++)
			memcpy(data + patches[i].offset, &indexes[patches[i].end], 4);
		if (step->call == 'K') { // fork; the parent skips the child's part
			if ((child = fork()) > 0)
				at += step->argument;
			else if (child < 0)
				die(step);
		} else if (run(step, data) < 0) {
			die(step);
		}
	}
	return 0;
}

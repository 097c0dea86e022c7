/* SPDX-License-Identifier: Apache-2.0
 *
 * An unprivileged user's program that looks like the node's daemon: it runs in the node's network
 * namespace and holds a TUN of the daemon's name, which was made in a user and network namespace of
 * its own. Its `--version` leaves a file that says who ran it.
 *
 * fakedaemon INTERFACE [here]
 * With `here`, or as root, it takes the TUN of the namespace that it is in.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef MARKER
#error "MARKER: the file that --version writes"
#endif

static void send_tun(int channel, const char *name, int here)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {0};
	struct iovec byte = {.iov_base = "t", .iov_len = 1};
	struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1,
		.msg_control = control.space, .msg_controllen = sizeof(control.space)};
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	int tun;

	if (!here && unshare(CLONE_NEWUSER | CLONE_NEWNET))
		err(1, "unshare");
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	tun = open("/dev/net/tun", O_RDWR);
	if (tun < 0 || ioctl(tun, TUNSETIFF, &request))
		err(1, "TUNSETIFF");
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(tun));
	memcpy(CMSG_DATA(rights), &tun, sizeof(tun));
	if (sendmsg(channel, &message, 0) != 1)
		err(1, "sendmsg");
}

int main(int argc, char **argv)
{
	int channel[2];
	char byte, space[CMSG_SPACE(sizeof(int))];
	struct iovec where = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &where, .msg_iovlen = 1,
		.msg_control = space, .msg_controllen = sizeof(space)};

	if (argc > 1 && !strcmp(argv[1], "--version")) {
		int marker = open(MARKER, O_WRONLY | O_CREAT | O_APPEND, 0644);
		dprintf(marker, "uid=%d\n", geteuid());
		puts("mycelium 6.6.6");
		return 0;
	}
	if (argc < 2)
		errx(2, "usage: fakedaemon INTERFACE [here]");
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, channel))
		err(1, "socketpair");
	if (!fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		send_tun(channel[1], argv[1], argc > 2 || !geteuid());
		pause();
	}
	close(channel[1]);
	if (recvmsg(channel[0], &message, 0) != 1)
		errx(1, "no TUN came");
	puts("ready");
	fflush(stdout);
	pause();
}

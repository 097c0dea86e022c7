// SPDX-License-Identifier: Apache-2.0
// Starts processes and tells how long each lived and how much memory it had at most.
//
// A process of its own because the kernel counts the memory of whoever calls posix_spawn(3) as its
// child's, and because a small one is cheap to spawn from. On standard input come batches:
//
//     PARALLEL COUNT
//     NETNS <tab> STDIN <tab> STDOUT <tab> NUMBER OF ARGUMENTS <tab> ARGUMENTS... <tab> ENVIRONMENT...
//
// and for each line of a batch, in its order, one line goes out: wait status, start and end
// (CLOCK_MONOTONIC, ns), peak resident set (KiB).

#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FIELDS = 64 };

struct job {
	char *fields[MOST_FIELDS];
	int netns;
	pid_t pid;
	int status;
	int64_t start, end;
	long memory;
};

static void die(const char *what) {
	perror(what);
	exit(1);
}

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void prepare(struct job *job, char *line) {
	size_t n = 0;
	line[strcspn(line, "\n")] = 0;
	for (char *field; (field = strsep(&line, "\t"));) {
		if (n == MOST_FIELDS - 1)
			exit(2);
		job->fields[n++] = field;
	}
	if (n < 5)
		exit(2);
	job->netns = open(job->fields[0], O_RDONLY | O_CLOEXEC);
	if (job->netns < 0)
		die(job->fields[0]);
}

static void start(struct job *job) {
	// The argument vector and the environment are parts of the same list, a NULL between them
	// where the number of arguments stood.
	char *argv[MOST_FIELDS];
	int arguments = atoi(job->fields[3]);
	memcpy(argv, job->fields + 4, (size_t)arguments * sizeof *argv);
	argv[arguments] = NULL;
	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, 0, job->fields[1], O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&files, 1, job->fields[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (setns(job->netns, CLONE_NEWNET))
		die("setns");
	job->start = now();
	if (posix_spawn(&job->pid, argv[0], &files, NULL, argv, job->fields + 4 + arguments))
		die(argv[0]);
	posix_spawn_file_actions_destroy(&files);
}

static void await(struct job *jobs, int count) {
	struct rusage usage;
	int status;
	pid_t pid = wait4(-1, &status, 0, &usage);
	int64_t end = now();
	if (pid < 0)
		die("wait4");
	for (int i = 0; i < count; i++)
		if (jobs[i].pid == pid) {
			jobs[i].status = status;
			jobs[i].end = end;
			jobs[i].memory = usage.ru_maxrss;
		}
}

int main(void) {
	char *line = NULL;
	size_t room = 0;
	int parallel, count;
	while (getline(&line, &room, stdin) > 0 && sscanf(line, "%d %d", &parallel, &count) == 2) {
		struct job *jobs = calloc((size_t)count, sizeof *jobs);
		char **lines = calloc((size_t)count, sizeof *lines);
		if (!jobs || !lines)
			die("calloc");
		for (int i = 0; i < count; i++) {
			size_t size = 0;
			if (getline(&lines[i], &size, stdin) < 0)
				return 1;
			prepare(&jobs[i], lines[i]);
		}
		for (int started = 0, ended = 0; ended < count; ended++) {
			while (started < count && started - ended < parallel)
				start(&jobs[started++]);
			await(jobs, started);
		}
		for (int i = 0; i < count; i++) {
			printf("%d %lld %lld %ld\n", jobs[i].status, (long long)jobs[i].start, (long long)jobs[i].end,
			       jobs[i].memory);
			close(jobs[i].netns);
			free(lines[i]);
		}
		fflush(stdout);
		free(jobs);
		free(lines);
	}
	return 0;
}

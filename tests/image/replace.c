// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Images that take the place of others: which ones they may replace, and who may read them then. */
#include "image_rig.h"

#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#define BYTES (40 * PAGE)

static uint8_t *models[3];

static void begin(void)
{
	enter_folder();
	for (unsigned int i = 0; i < 3; i++) {
		models[i] = malloc(BYTES);
		for (uint64_t p = 0; p < BYTES / PAGE; p++)
			fill_page(models[i] + p * PAGE, p, i + 1);
	}
}

static void end(void)
{
	for (unsigned int i = 0; i < 3; i++)
		free(models[i]);
	leave_folder();
}

static struct kvmem_image_writer *replace_only(const char *path, const struct kvmem_image *old)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	struct kvmem_image_writer *w;

	o.flags = KVMEM_IMAGE_REPLACE;
	o.regions = &one;
	o.region_count = 1;
	o.replaces = old;
	must(kvmem_image_create(path, &o, &w));
	return w;
}

static void check(const char *index, unsigned int model)
{
	struct kvmem_image *image = open_image(index);

	check_model(image, models[model], BYTES);
	must(kvmem_image_verify(image, NULL, NULL));
	must(kvmem_image_close(image));
}

TEST(only_the_image_that_is_meant)
{
	struct kvmem_image_writer *w;
	struct kvmem_image *old;

	begin();
	save_model("a", models[0], BYTES, 0);
	old = open_image("a.kvmem");
	w = replace_only("a", old);
	must(kvmem_image_write(w, 0, models[1], BYTES));
	must(kvmem_image_close(old));
	must(kvmem_image_commit(w, NULL));
	check("a.kvmem", 1);

	/* Somebody else was faster: his image stays, and nothing of this one. */
	old = open_image("a.kvmem");
	w = replace_only("a", old);
	must(kvmem_image_write(w, 0, models[2], BYTES));
	must(kvmem_image_close(old));
	save_model("a", models[0], BYTES, KVMEM_IMAGE_REPLACE);
	fails(kvmem_image_commit(w, NULL), ESTALE, "a.kvmem");
	ck_assert_uint_eq(files_here(), 2);
	check("a.kvmem", 0);

	/* Of the same content, and another one all the same. */
	old = open_image("a.kvmem");
	w = replace_only("a", old);
	must(kvmem_image_close(old));
	save_model("a", models[0], BYTES, KVMEM_IMAGE_REPLACE);
	fails(kvmem_image_commit(w, NULL), ESTALE, "another");
	check("a.kvmem", 0);

	/* It was deleted: it does not come back. */
	old = open_image("a.kvmem");
	w = replace_only("a", old);
	must(kvmem_image_close(old));
	shell("rm a*");
	fails(kvmem_image_commit(w, NULL), ESTALE, "not there");
	ck_assert_uint_eq(files_here(), 0);
	end();
}
END

TEST(what_replaces_is_refused)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_open_opts raw = KVMEM_IMAGE_OPEN_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	struct kvmem_image *image;
	struct kvmem_image_writer *w = NULL;

	begin();
	save_model("a", models[0], BYTES, 0);
	image = open_image("a.kvmem");
	o.regions = &one;
	o.region_count = 1;
	o.replaces = image;
	fails(kvmem_image_create("b", &o, &w), EINVAL, "KVMEM_IMAGE_REPLACE");
	must(kvmem_image_close(image));
	raw.flags = KVMEM_IMAGE_RAW_FULL;
	must(kvmem_image_open("a", &raw, &image));
	o.flags = KVMEM_IMAGE_REPLACE;
	o.replaces = image;
	fails(kvmem_image_create("a", &o, &w), EOPNOTSUPP, "raw");
	must(kvmem_image_close(image));
	ck_assert_ptr_null(w);
	check("a.kvmem", 0);
	end();
}
END

/* ---- who may read it ---- */

/* What the data of a.kvmem are called now: the one file that is no index. */
static const char *data_name(void)
{
	static char name[256];
	DIR *d = opendir(".");

	name[0] = '\0';
	for (const struct dirent *e; (e = readdir(d)) != NULL;)
		if (e->d_name[0] == 'a' && !strstr(e->d_name, ".kvmem"))
			snprintf(name, sizeof(name), "%s", e->d_name);
	closedir(d);
	return name;
}

static struct stat stat_of(const char *name)
{
	struct stat st;

	ck_assert_int_eq(stat(name, &st), 0);
	return st;
}

static void expect(mode_t index, mode_t data)
{
	ck_assert_uint_eq(stat_of("a.kvmem").st_mode & 07777, index);
	ck_assert_uint_eq(stat_of(data_name()).st_mode & 07777, data);
}

static void check_modes(uint32_t layout)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	struct kvmem_image_writer *w;
	int r;

	save_model("a", models[0], BYTES, 0);
	expect(0600, 0600); /* of a new image, whatever the umask */
	chmod("a.kvmem", 0644);
	chmod("a", 0640);
	o.flags = KVMEM_IMAGE_REPLACE | layout;
	o.regions = &one;
	o.region_count = 1;
	r = kvmem_image_create("a", &o, &w);
	if (r == -EOPNOTSUPP) /* built without zstd */
		return;
	must(r);
	must(kvmem_image_write(w, 0, models[1], BYTES));
	must(kvmem_image_commit(w, NULL));
	expect(0644, 0640);
	save_model("a", models[2], BYTES, KVMEM_IMAGE_REPLACE);
	expect(0644, 0640);
	/* Without an index nothing is replaced: the data that are in the way are nobody's. */
	shell("rm a*; echo > a; chmod 644 a");
	save_model("a", models[2], BYTES, KVMEM_IMAGE_REPLACE);
	ck_assert_uint_eq(stat_of("a.kvmem").st_mode & 07777, 0600);
	check("a.kvmem", 2);
}

TEST(the_mode_stays)
{
	static const mode_t masks[] = { 077, 0 };

	for (unsigned int i = 0; i < 4; i++) {
		begin();
		umask(masks[i / 2]);
		check_modes(i % 2 ? KVMEM_IMAGE_PACKED : 0);
		end();
	}
}
END

/* In a process of its own, which is this user and has no other group. */
static void save_as(uid_t uid, gid_t gid)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
		struct kvmem_image_region one = region_of(BYTES, 0, "ram");
		struct kvmem_image_writer *w;

		if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
			_exit(2);
		o.flags = KVMEM_IMAGE_REPLACE;
		o.regions = &one;
		o.region_count = 1;
		if (kvmem_image_create("a", &o, &w) || kvmem_image_write(w, 0, models[1], BYTES) ||
		    kvmem_image_commit(w, NULL)) {
			fprintf(stderr, "%s\n", kvmem_error_detail());
			_exit(1);
		}
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
}

TEST(owner_and_group_stay_where_they_may)
{
	struct stat st;

	SKIP_IF(geteuid() != 0, "root", "files of other users");
	begin();
	chmod(".", 0777);
	save_model("a", models[0], BYTES, 0);
	ck_assert_int_eq(chown("a", 1234, 4321) | chown("a.kvmem", 1234, 4321), 0);
	chmod("a", 0640);
	chmod("a.kvmem", 0640);
	save_as(0, 0);
	st = stat_of(data_name());
	ck_assert_uint_eq(st.st_uid, 1234);
	ck_assert_uint_eq(st.st_gid, 4321);
	expect(0640, 0640);

	/* Of the group, and not the owner: the group stays. */
	save_as(1235, 4321);
	st = stat_of("a.kvmem");
	ck_assert_uint_eq(st.st_uid, 1235);
	ck_assert_uint_eq(st.st_gid, 4321);
	expect(0640, 0640);

	/* Neither: who could not read it before cannot read it now, another group's members among them. */
	chmod("a.kvmem", 0644);
	chmod(data_name(), 0644);
	ck_assert_int_eq(chown("a.kvmem", 1234, 4322), 0);
	ck_assert_int_eq(chown(data_name(), 1234, 4322), 0);
	chmod(data_name(), 0604);
	save_as(1236, 1236);
	st = stat_of(data_name());
	ck_assert_uint_eq(st.st_uid, 1236);
	ck_assert_uint_eq(st.st_gid, 1236);
	expect(0644, 0600);
	check("a.kvmem", 1);
	end();
}
END

/* user::rw-, user:1234:r--, group::---, mask::r--, other::---, as the kernel has it. */
static const uint8_t acl[] = { 2,    0,	   0,	 0,    1,    0,	   6,  0,    0xff, 0xff, 0xff,
			       0xff, 2,	   0,	 4,    0,    0xd2, 4,  0,    0,	   4,	 0,
			       0,    0,	   0xff, 0xff, 0xff, 0xff, 16, 0,    4,	   0,	 0xff,
			       0xff, 0xff, 0xff, 32,   0,    0,	   0,  0xff, 0xff, 0xff, 0xff };
#define ACL "system.posix_acl_access"

TEST(an_access_control_list_stays)
{
	uint8_t got[sizeof(acl) + 1];

	begin();
	save_model("a", models[0], BYTES, 0);
	if (setxattr("a", ACL, acl, sizeof(acl), 0)) {
		end();
		SKIP_IF(true, "acl", "no access control lists on this file system");
	}
	expect(0600, 0640); /* the mask shows as the group's bits: that is not what the group may */
	save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE);
	expect(0600, 0640);
	ck_assert_int_eq(getxattr(data_name(), ACL, got, sizeof(got)), sizeof(acl));
	ck_assert_int_eq(memcmp(got, acl, sizeof(acl)), 0);
	ck_assert_int_lt(getxattr("a.kvmem", ACL, got, sizeof(got)), 0);
	end();
}
END

/* Files that are made in the folder get a list from it: what replaces a file without one has none. */
TEST(a_list_of_the_folder_gives_nobody_more)
{
	uint8_t got[sizeof(acl) + 1];

	begin();
	save_model("a", models[0], BYTES, 0);
	chmod("a", 0640);
	if (setxattr(".", "system.posix_acl_default", acl, sizeof(acl), 0)) {
		end();
		SKIP_IF(true, "acl", "no access control lists on this file system");
	}
	save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE);
	expect(0600, 0640);
	ck_assert_int_lt(getxattr(data_name(), ACL, got, sizeof(got)), 0);
	end();
}
END

/* ---- locks ---- */

/* Whoever may look into a folder can lock it. That keeps no image from being committed. */
TEST(the_folders_lock_keeps_nobody_out)
{
	int dir;

	begin();
	dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ck_assert_int_eq(flock(dir, LOCK_EX | LOCK_NB), 0);
	save_model("a", models[0], BYTES, 0);
	save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE);
	check("a.kvmem", 1);
	close(dir);
	end();
}
END

/* A child has the descriptors of the writer, and with them its locks. */
TEST(a_child_of_a_fork_keeps_no_lock)
{
	struct kvmem_image_writer *w;
	pid_t pid;
	int fd, r;

	begin();
	w = create("a", NULL, BYTES, 0);
	pid = fork();
	if (!pid)
		for (;;)
			pause();
	r = kvmem_image_commit(w, NULL);
	fd = open("a", O_RDONLY | O_CLOEXEC);
	r = r ? r : flock(fd, LOCK_EX | LOCK_NB);
	close(fd);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	ck_assert_int_eq(r, 0);
	end();
}
END

#define RACERS 4u
#define ROUNDS 60u

static pthread_barrier_t barrier;
static _Atomic unsigned int committed[ROUNDS];

/* The last one comes without KVMEM_IMAGE_REPLACE, and may be too late. */
static void *race(void *arg)
{
	unsigned int number = (unsigned int)(uintptr_t)arg;

	for (unsigned int i = 0; i < ROUNDS; i++) {
		uint32_t flags = number == RACERS - 1 ? 0 : KVMEM_IMAGE_REPLACE;
		struct kvmem_image_writer *w;
		int r;

		pthread_barrier_wait(&barrier);
		if (!number)
			shell("rm -f a*");
		pthread_barrier_wait(&barrier);
		w = create("a", NULL, BYTES, flags | KVMEM_IMAGE_NO_SYNC);
		pthread_barrier_wait(&barrier);
		must(kvmem_image_write(w, 0, models[number % 3], BYTES));
		r = kvmem_image_commit(w, NULL);
		if (r != -EEXIST || flags)
			must(r);
		committed[i] += !r;
		pthread_barrier_wait(&barrier);
		if (!number) {
			struct kvmem_image *image = open_image("a.kvmem");

			ck_assert_uint_eq(files_here(), 2);
			must(kvmem_image_verify(image, NULL, NULL));
			must(kvmem_image_close(image));
		}
	}
	return NULL;
}

TEST(several_commits_at_the_same_moment)
{
	pthread_t threads[RACERS];

	begin();
	pthread_barrier_init(&barrier, NULL, RACERS);
	for (uintptr_t i = 0; i < RACERS; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, race, (void *)i), 0);
	for (unsigned int i = 0; i < RACERS; i++)
		pthread_join(threads[i], NULL);
	for (unsigned int i = 0; i < ROUNDS; i++)
		ck_assert_uint_ge(committed[i], RACERS - 1);
	pthread_barrier_destroy(&barrier);
	end();
}
END

/* ---- data that stay behind ---- */

TEST(data_left_behind_go_when_nobody_has_them)
{
	struct kvmem_image *reader, *second;

	begin();
	save_model("a", models[0], BYTES, 0);
	reader = open_image("a.kvmem");
	save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE);
	second = open_image("a.kvmem");
	save_model("a", models[2], BYTES, KVMEM_IMAGE_REPLACE);
	ck_assert_uint_eq(files_here(), 4);
	must(kvmem_image_close(second));
	save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE);
	ck_assert_uint_eq(files_here(), 3); /* the reader's are there still */
	check_model(reader, models[0], BYTES);
	must(kvmem_image_close(reader));
	save_model("a", models[2], BYTES, KVMEM_IMAGE_REPLACE);
	ck_assert_uint_eq(files_here(), 2);
	check("a.kvmem", 2);
	end();
}
END

/* Somebody has taken the data away, or written to them: what has the name is his. */
TEST(another_file_of_that_name_stays)
{
	static const char *const acts[] = { "rm a; echo mine > a", "echo mine > a",
					    "cp a b; mv b a", "touch -d 2001-01-01 a" };

	for (unsigned int i = 0; i < 4; i++) {
		struct kvmem_image *reader;
		struct stat st;

		begin();
		save_model("a", models[0], BYTES, 0);
		reader = open_image("a.kvmem");
		save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE);
		must(kvmem_image_close(reader));
		shell(acts[i]);
		save_model("a", models[2], BYTES, KVMEM_IMAGE_REPLACE);
		save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE);
		ck_assert_int_eq(stat("a", &st), 0);
		ck_assert_uint_eq(files_here(), 3);
		check("a.kvmem", 1);
		end();
	}
}
END

/* An index has room for 64 of them. */
TEST(many_are_left_behind)
{
	struct kvmem_image *readers[70];

	begin();
	save_model("a", models[0], BYTES, KVMEM_IMAGE_NO_SYNC);
	for (unsigned int i = 0; i < 70; i++) {
		readers[i] = open_image("a.kvmem");
		save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE | KVMEM_IMAGE_NO_SYNC);
	}
	ck_assert_uint_eq(files_here(), 72);
	for (unsigned int i = 0; i < 70; i++)
		must(kvmem_image_close(readers[i]));
	save_model("a", models[2], BYTES, KVMEM_IMAGE_REPLACE);
	ck_assert_uint_eq(files_here(), 2 + 71 - 64);
	check("a.kvmem", 2);
	end();
}
END

/* The link is replaced, not what it leads to: neither those data go nor a file here that has their name. */
TEST(an_index_that_is_a_link)
{
	begin();
	shell("mkdir x");
	save_model("x/a", models[0], BYTES, 0);
	shell("ln -s x/a.kvmem a.kvmem; echo mine > a");
	save_model("a", models[1], BYTES, KVMEM_IMAGE_REPLACE);
	shell("test \"$(cat a)\" = mine");
	check("a.kvmem", 1);
	check("x/a.kvmem", 0);
	end();
}
END

HARNESS_MAIN(T(the_folders_lock_keeps_nobody_out), T(a_child_of_a_fork_keeps_no_lock),
	     T(several_commits_at_the_same_moment), T(data_left_behind_go_when_nobody_has_them),
	     T(another_file_of_that_name_stays), T(many_are_left_behind),
	     T(an_index_that_is_a_link), T(only_the_image_that_is_meant),
	     T(what_replaces_is_refused), T(the_mode_stays), T(owner_and_group_stay_where_they_may),
	     T(an_access_control_list_stays), T(a_list_of_the_folder_gives_nobody_more))

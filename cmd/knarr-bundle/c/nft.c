/* nft runs Debian's nft, which lies in ../lib/nft with its libraries, by its
 * own dynamic loader, so that neither the host's libraries nor a shell are
 * needed. */
#include "sys.h"

static word append(char *to, word at, const char *s) {
	while (*s)
		to[at++] = *s++;
	to[at] = 0;
	return at;
}

static void fail(const char *s) {
	word n = 0;
	while (s[n])
		n++;
	call(sys_write, 2, (word)s, n, 0);
	call(sys_exit, 127, 0, 0, 0);
}

__attribute__((used, noreturn)) void start(word *stack) {
	word argc = stack[0], n = 0, i;
	char **argv = (char **)(stack + 1), **env = argv + argc + 1;
	char lib[4200], loader[4200], real[4200], names[4200], *args[argc + 10];

	long len = call(sys_readlinkat, (word)-100, (word) "/proc/self/exe", (word)lib, 4096);
	if (len <= 0 || len == 4096)
		fail("nft: cannot read /proc/self/exe: is /proc mounted?\n");
	for (i = 0; i < 2; i++) /* drop "/bin/nft" */
		while (len > 0 && lib[--len] != '/')
			;
	append(lib, len, "/lib/nft");
	append(loader, append(loader, 0, lib), "/knarr-nft");
	append(real, append(real, 0, lib), "/nft");
	append(names, append(names, 0, lib), "/protocols.so");

	args[n++] = loader;
	args[n++] = "--inhibit-cache";
	args[n++] = "--argv0";
	args[n++] = argc ? argv[0] : "nft";
	args[n++] = "--library-path";
	args[n++] = lib;
	args[n++] = "--preload";
	args[n++] = names;
	args[n++] = real;
	for (i = 1; i < argc; i++)
		args[n++] = argv[i];
	args[n] = 0;
	call(sys_execve, (word)loader, (word)args, (word)env, 0);
	fail("nft: cannot run ../lib/nft/knarr-nft: the bundle is incomplete\n");
	for (;;)
		;
}

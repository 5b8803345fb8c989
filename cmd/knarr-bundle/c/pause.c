/* pause holds a pod's namespaces: it reaps orphans and ends when told to. */
#include "sys.h"

enum { sigint = 2, sigterm = 15, sigchld = 17 };

__attribute__((used, noreturn)) void start(word *stack) {
	/* Signals are taken by waiting for them, which needs no handler and
	 * works for process 1, whose unhandled signals the kernel drops. */
	unsigned long long set = 1ull << (sigint - 1) | 1ull << (sigterm - 1) | 1ull << (sigchld - 1);
	(void)stack;
	call(sys_sigprocmask, 0, (word)&set, 0, sizeof set);
	for (;;) {
		long sig = call(sys_sigtimedwait, (word)&set, 0, 0, sizeof set);
		if (sig == sigint || sig == sigterm)
			call(sys_exit, 0, 0, 0, 0);
		while (call(sys_wait4, (word)-1, 0, 1 /* WNOHANG */, 0) > 0)
			;
	}
}

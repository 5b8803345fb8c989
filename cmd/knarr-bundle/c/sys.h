/* The few system calls that our two tiny programs need, without a C library:
 * they start in microseconds and weigh a few kilobytes. */
typedef unsigned long word;

#if defined(__x86_64__)
enum { sys_exit = 231, sys_execve = 59, sys_readlinkat = 267, sys_write = 1,
       sys_wait4 = 61, sys_sigprocmask = 14, sys_sigtimedwait = 128 };
static inline long call(long n, word a, word b, word c, word d) {
	long r;
	register word r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10)
	                 : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall start\n");
#elif defined(__aarch64__)
enum { sys_exit = 94, sys_execve = 221, sys_readlinkat = 78, sys_write = 64,
       sys_wait4 = 260, sys_sigprocmask = 135, sys_sigtimedwait = 137 };
static inline long call(long n, word a, word b, word c, word d) {
	register long x8 __asm__("x8") = n;
	register word x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return (long)x0;
}
__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x0,sp\n\tbl start\n");
#elif defined(__arm__)
enum { sys_exit = 248, sys_execve = 11, sys_readlinkat = 332, sys_write = 4,
       sys_wait4 = 114, sys_sigprocmask = 175, sys_sigtimedwait = 177 };
static inline long call(long n, word a, word b, word c, word d) {
	register long r7 __asm__("r7") = n;
	register word r0 __asm__("r0") = a, r1 __asm__("r1") = b, r2 __asm__("r2") = c, r3 __asm__("r3") = d;
	__asm__ volatile("svc 0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3) : "memory");
	return (long)r0;
}
__asm__(".arm\n.globl _start\n_start:\n\tmov fp,#0\n\tmov r0,sp\n\tbic sp,sp,#7\n\tbl start\n");
#else
#error "no system calls known for this processor"
#endif

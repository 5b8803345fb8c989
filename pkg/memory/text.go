package memory

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dropText gives back what start-up has touched of the executable: two thirds
// of its code and tables run once and never again. What is still needed comes
// back from the page cache, a minor fault each. Only mappings of which no page
// was ever written are dropped, so that nothing can be lost.
func dropText() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("read own mappings: %w", err)
	}
	defer f.Close()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	var start, end uint64
	ours := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if from, to, ok := strings.Cut(fields[0], "-"); ok && !strings.HasSuffix(fields[0], ":") {
			ours = len(fields) >= 6 && strings.Join(fields[5:], " ") == exe && (fields[1] == "r-xp" || fields[1] == "r--p")
			start, err = strconv.ParseUint(from, 16, 64)
			if err == nil {
				end, err = strconv.ParseUint(to, 16, 64)
			}
			if err != nil {
				return fmt.Errorf("read own mappings: %q: %w", lines.Text(), err)
			}
			continue
		}
		// Anonymous counts the pages that are no longer the file's.
		if ours && fields[0] == "Anonymous:" && fields[1] == "0" {
			splitFolios(uintptr(start), uintptr(end))
			if err := advise(uintptr(start), uintptr(end), unix.MADV_DONTNEED); err != nil {
				return fmt.Errorf("give back pages of the executable: %w", err)
			}
		}
	}
	return lines.Err()
}

// splitFolios has the kernel keep a file in the page cache by single pages, so
// that a fault brings back the 64 KiB around it and no more. A file that was
// read from its beginning to its end lies there by 2 MiB, and each fault maps
// as much: within seconds all of it would be back. The kernel splits what is
// said to be cold only in part (madvise_cold_or_pageout_pte_range in
// mm/madvise.c); one that does not leaves all as it is.
func splitFolios(start, end uintptr) {
	const page, faultAround = 4 << 10, 64 << 10
	for at := start; at+page <= end; at += faultAround {
		_ = advise(at, at+page, unix.MADV_COLD)
	}
}

func advise(start, end uintptr, how uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, how); errno != 0 {
		return errno
	}
	return nil
}

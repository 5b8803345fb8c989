package lifecycle

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// spewLines are the writer's lines in the order written, out of all log files,
// those that the kubelet has rotated away included.
func (w *outliving) spewLines(t *testing.T, pod *corev1.Pod) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(w.logFolder(pod), "0.log*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	// The plain name sorts first and is the newest.
	files = append(files[1:], files[0])
	t.Logf("%d log files", len(files))
	var all []string
	for _, f := range files {
		text, err := readLog(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, containerLines(text)...)
	}
	return all
}

func readLog(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(path, ".gz") {
		return text, err
	}
	zip, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(zip)
}

// containerLines takes the time, the stream and the tag off each line. What
// follows the last newline is being written.
func containerLines(text []byte) []string {
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	var lines []string
	whole := true
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		parts := strings.SplitN(s.Text(), " ", 4)
		if len(parts) < 4 {
			continue
		}
		if whole {
			lines = append(lines, parts[3])
		} else {
			lines[len(lines)-1] += parts[3]
		}
		whole = parts[2] == "F"
	}
	return lines
}

// checkNumbered checks that lines count from 0 without a gap.
func checkNumbered(t *testing.T, lines []string) {
	t.Helper()
	if len(lines) == 0 {
		t.Fatal("no line was logged")
	}
	for want, l := range lines {
		number, rest, _ := strings.Cut(l, " ")
		got, err := strconv.Atoi(number)
		if err == nil && len(rest) != 86 {
			err = errors.New("cut short")
		}
		if err != nil || got != want {
			t.Fatalf("of %d lines number %d reads %q: %v", len(lines), want, l, err)
		}
	}
	t.Logf("%d lines, none is missing", len(lines))
}

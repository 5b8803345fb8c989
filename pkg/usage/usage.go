// Package usage tells how much memory and processor time each part of this process
// takes, where that can be told.
//
// Processor time and goroutines are told by the label that component.Group sets on
// the goroutine in which a component runs, which those that it starts inherit. The
// heap has no labels: what is allocated is told by the packages in the stack that
// allocated it. What belongs to several parts, or to none, is "shared".
package usage

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/knarr-dev/knarr/pkg/component"
)

// Shared is the name of what cannot be told apart.
const Shared = "shared"

// Report is what a process used.
type Report struct {
	// Seconds is for how long processor time was sampled, a hundred times a second.
	Seconds float64 `json:"seconds"`
	// CPU is the sum of what the parts used, in cores.
	CPU float64 `json:"cpu"`
	// ResidentBytes are all of the process' memory that is in RAM, the program's own
	// text among it. HeapBytes are what its objects take, StackBytes its goroutines'
	// stacks.
	ResidentBytes int64  `json:"residentBytes"`
	HeapBytes     int64  `json:"heapBytes"`
	StackBytes    int64  `json:"stackBytes"`
	Goroutines    int    `json:"goroutines"`
	Parts         []Part `json:"parts"`
}

// Part is a component, or Shared.
type Part struct {
	Name string `json:"name"`
	// CPU is in cores.
	CPU float64 `json:"cpu"`
	// HeapBytes are an estimate: one allocation of about 512 KiB is looked at.
	HeapBytes  int64 `json:"heapBytes"`
	Goroutines int   `json:"goroutines"`
}

// Take samples for a time. Only one at a time can, in a process.
func Take(ctx context.Context, d time.Duration) (*Report, error) {
	var profile bytes.Buffer
	if err := pprof.StartCPUProfile(&profile); err != nil {
		return nil, fmt.Errorf("sample processor time: %w", err)
	}
	began := time.Now()
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	pprof.StopCPUProfile()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	took := time.Since(began).Seconds()
	cpu, err := byLabel(&profile)
	if err != nil {
		return nil, fmt.Errorf("read samples of processor time: %w", err)
	}
	var dump bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&dump, 1); err != nil {
		return nil, fmt.Errorf("count goroutines: %w", err)
	}
	routines := countRoutines(dump.String())
	heap := byPackage()

	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	r := &Report{Seconds: took, HeapBytes: int64(m.HeapAlloc), StackBytes: int64(m.StackInuse), ResidentBytes: resident(), Goroutines: runtime.NumGoroutine()}
	parts := map[string]*Part{}
	part := func(name string) *Part {
		if parts[name] == nil {
			parts[name] = &Part{Name: name}
		}
		return parts[name]
	}
	for name, ns := range cpu {
		part(name).CPU = float64(ns) / 1e9 / took
		r.CPU += part(name).CPU
	}
	for name, n := range routines {
		part(name).Goroutines = n
	}
	for name, n := range heap {
		part(name).HeapBytes = n
	}
	for _, p := range parts {
		r.Parts = append(r.Parts, *p)
	}
	slices.SortFunc(r.Parts, func(a, b Part) int {
		if (a.Name == Shared) != (b.Name == Shared) { // it comes last
			if a.Name == Shared {
				return 1
			}
			return -1
		}
		if a.HeapBytes != b.HeapBytes {
			return int(b.HeapBytes - a.HeapBytes)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return r, nil
}

// resident is VmRSS, or 0 where the kernel does not tell.
func resident() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

var labelOf = regexp.MustCompile(`"` + component.Label + `":"([^"]+)"`)

// countRoutines reads a goroutine profile in text: a line that begins with how many
// there are, and below it their labels, if they have some.
func countRoutines(text string) map[string]int {
	found := map[string]int{}
	n := 0
	flush := func(name string) {
		if n > 0 {
			found[name] += n
		}
		n = 0
	}
	for line := range strings.SplitSeq(text, "\n") {
		if count, _, is := strings.Cut(line, " @ "); is {
			flush(Shared)
			n, _ = strconv.Atoi(count)
			continue
		}
		if labels, is := strings.CutPrefix(line, "# labels: "); is {
			if m := labelOf.FindStringSubmatch(labels); m != nil {
				flush(m[1])
			}
		}
	}
	flush(Shared)
	return found
}

// byLabel sums up the nanoseconds in a profile of processor time. Of its format
// (profile.proto of github.com/google/pprof) it needs three fields.
func byLabel(r io.Reader) (map[string]int64, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	const sampleField, stringField = 2, 6
	var samples [][]byte
	var names []string
	err = eachField(text, func(n protowire.Number, v []byte, _ uint64) error {
		switch n {
		case sampleField:
			samples = append(samples, v)
		case stringField:
			names = append(names, string(v))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	found := map[string]int64{}
	for _, s := range samples {
		name, ns, err := readSample(s, names)
		if err != nil {
			return nil, err
		}
		found[name] += ns
	}
	return found, nil
}

// readSample returns the component that a sample is of, and its last value, which is
// in nanoseconds.
func readSample(text []byte, names []string) (name string, ns int64, err error) {
	const valueField, labelField, keyField, strField = 2, 3, 1, 2
	at := func(i uint64) string {
		if i < uint64(len(names)) {
			return names[i]
		}
		return ""
	}
	name = Shared
	err = eachField(text, func(n protowire.Number, v []byte, number uint64) error {
		switch n {
		case valueField:
			for len(v) > 0 { // packed
				one, size := protowire.ConsumeVarint(v)
				if size < 0 {
					return protowire.ParseError(size)
				}
				v, number = v[size:], one
			}
			ns = int64(number)
		case labelField:
			var key, value string
			err := eachField(v, func(n protowire.Number, _ []byte, number uint64) error {
				switch n {
				case keyField:
					key = at(number)
				case strField:
					value = at(number)
				}
				return nil
			})
			if err != nil {
				return err
			}
			if key == component.Label {
				name = value
			}
		}
		return nil
	})
	return name, ns, err
}

// eachField hands over each field of a message: its bytes, or its number.
func eachField(text []byte, do func(n protowire.Number, v []byte, number uint64) error) error {
	for len(text) > 0 {
		n, kind, size := protowire.ConsumeTag(text)
		if size < 0 {
			return protowire.ParseError(size)
		}
		text = text[size:]
		var v []byte
		var number uint64
		switch kind {
		case protowire.BytesType:
			v, size = protowire.ConsumeBytes(text)
		case protowire.VarintType:
			number, size = protowire.ConsumeVarint(text)
		default:
			size = protowire.ConsumeFieldValue(n, kind, text)
		}
		if size < 0 {
			return errors.Join(errors.New("a field is cut off"), protowire.ParseError(size))
		}
		text = text[size:]
		if err := do(n, v, number); err != nil {
			return err
		}
	}
	return nil
}

package flakydisk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"golang.org/x/sys/unix"
)

// sector is what a disk writes whole or not at all, in bytes.
const sector = 512

// image is a disk with a cache: what was written is seen at once, and safe from
// a power cut only after a flush.
type image struct {
	mu         sync.Mutex
	durable    []byte // what a power cut leaves for certain
	seen       []byte // durable with the writes that no flush has made safe
	pending    []write
	generation int  // of the power supply; older files are dead
	off        bool // no power
	failing    bool // every request is an I/O error
	counts     Counts
}

type write struct {
	off  int64
	data []byte
}

var errIO = errors.New("input/output error")

// newImage takes memory only for what is written.
func newImage(size int64) (*image, error) {
	m := &image{}
	for _, to := range []*[]byte{&m.durable, &m.seen} {
		var err error
		*to, err = unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
		if err != nil {
			return nil, fmt.Errorf("take memory for a disk: %w", err)
		}
	}
	return m, nil
}

func (m *image) size() int64 { return int64(len(m.seen)) }

// usable tells whether a file of that generation has a disk behind it. The
// caller holds m.mu.
func (m *image) usable(generation int) bool {
	return !m.off && !m.failing && generation == m.generation
}

func (m *image) read(generation int, dest []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.usable(generation) {
		return 0, errIO
	}
	if off >= m.size() {
		return 0, nil
	}
	return copy(dest, m.seen[off:]), nil
}

func (m *image) write(generation int, data []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.usable(generation) || off+int64(len(data)) > m.size() {
		return 0, errIO
	}
	copy(m.seen[off:], data)
	m.pending = append(m.pending, write{off, append([]byte(nil), data...)})
	m.counts.Writes++
	return len(data), nil
}

// flush makes safe what was written before it.
func (m *image) flush(generation int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.usable(generation) {
		return errIO
	}
	m.settle()
	m.counts.Flushes++
	return nil
}

func (m *image) settle() {
	for _, w := range m.pending {
		copy(m.durable[w.off:], w.data)
	}
	m.pending = nil
}

// cut takes the power away. Of each write that no flush has made safe, a part
// is on the disk with the probability keep, in any order; one in eight of those
// is torn between sectors.
func (m *image) cut(keep float64, random *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
	m.counts.Cuts++
	m.counts.Dropped += len(m.pending)
	for _, i := range random.Perm(len(m.pending)) {
		if keep == 0 || random.Float64() >= keep {
			continue
		}
		w := m.pending[i]
		torn := random.IntN(8) == 0
		for at := 0; at < len(w.data); at += sector {
			if !torn || random.IntN(2) == 0 {
				copy(m.durable[w.off+int64(at):], w.data[at:min(at+sector, len(w.data))])
			}
		}
		if !torn {
			m.counts.Dropped--
		}
	}
	for _, w := range m.pending {
		end := w.off + int64(len(w.data))
		copy(m.seen[w.off:end], m.durable[w.off:end])
	}
	m.pending = nil
}

// power gives it back, and the number that files must have from now on.
func (m *image) power() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off, m.failing = false, false
	m.generation++
	return m.generation
}

func (m *image) fail(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failing = on
}

func (m *image) count() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts
}

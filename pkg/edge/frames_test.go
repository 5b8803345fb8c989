package edge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"k8s.io/apimachinery/pkg/util/framer"
)

// inPieces cuts the stream by the sizes, over and over.
func inPieces(t *testing.T, f frames, stream, sizes []byte) (got [][]byte, err error) {
	t.Helper()
	each := func(frame []byte) { got = append(got, frame) }
	for i := 0; len(stream) > 0; i++ {
		n := len(stream)
		if len(sizes) > 0 {
			n = min(n, int(sizes[i%len(sizes)])+1)
		}
		piece := bytes.Clone(stream[:n])
		if err := f.write(piece, each); err != nil {
			return got, err
		}
		// What was handed out must not be the writer's.
		clear(piece)
		stream = stream[n:]
	}
	return got, nil
}

// byClientGo reads the stream as client-go does.
func byClientGo(stream []byte, asJSON bool) (frames [][]byte, err error) {
	r := framer.NewLengthDelimitedFrameReader(io.NopCloser(bytes.NewReader(stream)))
	if asJSON {
		r = framer.NewJSONFramedReader(io.NopCloser(bytes.NewReader(stream)))
	}
	buf := make([]byte, len(stream)+1)
	for {
		n, err := r.Read(buf)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			return frames, err
		}
		frames = append(frames, bytes.Clone(buf[:n]))
	}
}

func lengthDelimited(bodies ...string) []byte {
	var b []byte
	for _, s := range bodies {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return b
}

func TestFramesAreCutWhereClientGoCutsThem(t *testing.T) {
	for _, c := range []struct {
		name   string
		asJSON bool
		stream []byte
		want   int
	}{
		{"lengths", false, lengthDelimited("one", "", "three", string(make([]byte, 9000))), 4},
		{"an unfinished frame", false, lengthDelimited("one", "two")[:10], 1},
		{"json", true, []byte("{\"a\":1}\n{\"b\":\"}\\\"{\"}\n"), 2},
		{"json without newlines, and with many", true, []byte("{\"a\":[{}]}{}\n\n\r\n\t {\"c\":{\n\"d\": \"\\\\\"}}"), 3},
		{"an unfinished object", true, []byte("{\"a\":1}{\"b\":"), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, err := byClientGo(c.stream, c.asJSON)
			if err != nil || len(want) != c.want {
				t.Fatalf("client-go reads %d frames, %v", len(want), err)
			}
			for size := range 12 {
				got, err := inPieces(t, newFrames(c.asJSON), c.stream, []byte{byte(size)})
				if err != nil || len(got) != len(want) {
					t.Fatalf("in pieces of %d: %d frames, %v", size+1, len(got), err)
				}
				for i := range got {
					if !bytes.Equal(got[i], want[i]) {
						t.Errorf("in pieces of %d: frame %d is %q, want %q", size+1, i, got[i], want[i])
					}
				}
			}
		})
	}
}

func TestWhatIsNoStreamOfEventsIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		asJSON bool
		stream []byte
	}{
		"a frame of four GiB": {false, []byte{0xff, 0xff, 0xff, 0xff, 1}},
		"a list":              {true, []byte(`["a"]`)},
		"text":                {true, []byte("<html>")},
	} {
		if _, err := inPieces(t, newFrames(c.asJSON), c.stream, nil); !errors.Is(err, errFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A length is no reason to take memory.
	f := new(lengthFrames)
	if err := f.write([]byte{0, 0xff, 0xff, 0xff, 1}, func([]byte) {}); err != nil || cap(f.body) > 64<<10 {
		t.Errorf("%d bytes taken for one that came, %v", cap(f.body), err)
	}
}

// Whatever the stream and its pieces, the frames are client-go's as long as it
// reads any.
func FuzzFrames(f *testing.F) {
	f.Add(lengthDelimited("one", "", "three"), []byte{0, 3}, false)
	f.Add([]byte("{\"a\":\"\\\"}\"}\n{}"), []byte{1}, true)
	f.Add([]byte("{\"a\":[1,2,{\"b\":null}]}"), []byte{0}, true)
	f.Add([]byte{0xff, 0, 0, 0}, []byte{}, false)
	f.Fuzz(func(t *testing.T, stream, sizes []byte, asJSON bool) {
		got, err := inPieces(t, newFrames(asJSON), stream, sizes)
		want, _ := byClientGo(stream, asJSON)
		for i := range want {
			if asJSON && (len(want[i]) == 0 || want[i][0] != '{') {
				return // no event
			}
			if i >= len(got) {
				if err != nil && !asJSON {
					return // a frame that is too long
				}
				t.Fatalf("%d frames, client-go reads %d; %v", len(got), len(want), err)
			}
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("frame %d is %q, client-go's %q", i, got[i], want[i])
			}
		}
	})
}

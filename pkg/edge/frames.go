package edge

import (
	"encoding/binary"
	"errors"
)

// maxFrame is the longest event that is read, in bytes; the API server's objects
// are at most a tenth of it.
const maxFrame = 16 << 20

var errFrame = errors.New("not a stream of watch events")

// frames cuts a stream, that comes in pieces of any size, into the events of a
// watch. A slice that it hands out is the receiver's to keep.
type frames interface {
	write(p []byte, each func(frame []byte)) error
}

func newFrames(asJSON bool) frames {
	if asJSON {
		return new(jsonFrames)
	}
	return new(lengthFrames)
}

// lengthFrames reads frames behind a length of four bytes, big endian, as they
// come with protobuf.
type lengthFrames struct {
	head []byte // of the length, as far as it has come
	body []byte
	want int
}

func (f *lengthFrames) write(p []byte, each func([]byte)) error {
	for len(p) > 0 {
		if f.body == nil {
			n := min(4-len(f.head), len(p))
			f.head, p = append(f.head, p[:n]...), p[n:]
			if len(f.head) < 4 {
				return nil
			}
			length := binary.BigEndian.Uint32(f.head)
			if length > maxFrame {
				return errFrame
			}
			f.want, f.head = int(length), f.head[:0]
			// No more than has come: a length is soon said.
			f.body = make([]byte, 0, min(f.want, max(len(p), 4<<10)))
		}
		n := min(f.want-len(f.body), len(p))
		f.body, p = append(f.body, p[:n]...), p[n:]
		if len(f.body) == f.want {
			body := f.body
			f.body = nil
			each(body)
		}
	}
	return nil
}

// jsonFrames reads JSON objects one after another. It looks at nothing but where
// they end.
type jsonFrames struct {
	body             []byte
	depth            int
	inString, escape bool
}

func (f *jsonFrames) write(p []byte, each func([]byte)) error {
	begin := 0 // of what is not in body yet
	for i, c := range p {
		if f.depth == 0 {
			switch c {
			case ' ', '\t', '\r', '\n':
				begin = i + 1
				continue
			case '{':
			default:
				return errFrame
			}
		}
		switch {
		case f.escape:
			f.escape = false
		case f.inString:
			switch c {
			case '\\':
				f.escape = true
			case '"':
				f.inString = false
			}
		case c == '"':
			f.inString = true
		case c == '{' || c == '[':
			f.depth++
		case c == '}' || c == ']':
			f.depth--
		}
		if f.depth == 0 {
			body := append(f.body, p[begin:i+1]...)
			f.body, begin = nil, i+1
			each(body)
		}
	}
	f.body = append(f.body, p[begin:]...)
	if len(f.body) > maxFrame {
		return errFrame
	}
	return nil
}

//go:build linux

package control

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxFrame is the largest payload, in bytes: a configuration of MaxConfig in
// base64, and what is around it.
const MaxFrame = 3 << 19

const headSize = 5

// Kinds of frames.
const (
	kindRequest = 'Q'
	kindData    = 'D'
	kindFinish  = 'F'
	kindMessage = 'M'
	kindError   = 'E'
	kindDone    = 'Z'
)

// readFrame returns the next frame. io.EOF is the end of the connection between
// frames. What a length promises is not allocated before it comes.
func readFrame(r io.Reader) (kind byte, payload []byte, err error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	kind, n := head[0], binary.BigEndian.Uint32(head[1:])
	switch kind {
	case kindRequest, kindData, kindMessage, kindError:
	case kindFinish, kindDone:
		if n != 0 {
			return 0, nil, fmt.Errorf("%w: frame %q has %d bytes, want none", ErrProtocol, kind, n)
		}
	default:
		return 0, nil, fmt.Errorf("%w: frame of kind %q, want Q, D, F, M, E or Z", ErrProtocol, kind)
	}
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("%w: frame %q of %d bytes, want at most %d", ErrProtocol, kind, n, MaxFrame)
	}
	if n == 0 {
		return kind, nil, nil
	}
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, fmt.Errorf("%w: frame %q ends after %d of %d bytes: %w", ErrProtocol, kind, buf.Len(), n, err)
	}
	return kind, buf.Bytes(), nil
}

func writeFrame(w io.Writer, kind byte, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("%w: answer of %d bytes, want at most %d", ErrProtocol, len(payload), MaxFrame)
	}
	frame := make([]byte, headSize, headSize+len(payload))
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	_, err := w.Write(append(frame, payload...))
	return err
}

// A request is the payload of the first frame.
type request struct {
	Verb   string          `json:"verb"`
	Caller string          `json:"caller"`
	Args   json.RawMessage `json:"args"`
}

// strict decodes JSON that must not hold anything unknown.
func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if d.More() {
		return fmt.Errorf("%w: something follows the JSON", ErrInvalid)
	}
	return nil
}

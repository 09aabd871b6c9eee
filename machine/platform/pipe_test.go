package platform

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// pipe returns two ends of a connection that, unlike net.Pipe's, has buffers, as TLS
// needs when both ends close. Waiting for it is durable in a bubble.
func pipe(remote net.Addr) (here, there net.Conn) {
	a, b := newHalf(), newHalf()
	return &end{in: a, out: b}, &end{in: b, out: a, remote: remote}
}

type end struct {
	in, out *half
	remote  net.Addr
}

func (e *end) Read(b []byte) (int, error)         { return e.in.read(b) }
func (e *end) Write(b []byte) (int, error)        { return e.out.write(b) }
func (e *end) Close() error                       { e.out.end(false); e.in.end(true); return nil }
func (e *end) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (e *end) RemoteAddr() net.Addr               { return e.remote }
func (e *end) SetReadDeadline(t time.Time) error  { e.in.until(t, 0); return nil }
func (e *end) SetWriteDeadline(t time.Time) error { e.out.until(t, 1); return nil }
func (e *end) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}

// half is one direction.
type half struct {
	mu        sync.Mutex
	cond      *sync.Cond
	buf       []byte
	ended     bool // nothing more is written
	unread    bool // nothing more is read
	deadlines [2]time.Time
	timers    [2]*time.Timer
}

func newHalf() *half {
	h := &half{}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) past(which int) bool {
	t := h.deadlines[which]
	return !t.IsZero() && !time.Now().Before(t)
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.unread:
			return 0, net.ErrClosed
		case h.past(0):
			return 0, os.ErrDeadlineExceeded
		case len(h.buf) > 0:
			n := copy(b, h.buf)
			h.buf = h.buf[n:]
			h.cond.Broadcast()
			return n, nil
		case h.ended:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

func (h *half) write(b []byte) (n int, err error) {
	const size = 64 << 10
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(b) > 0 {
		switch {
		case h.ended:
			return n, net.ErrClosed
		case h.unread:
			return n, syscall.EPIPE
		case h.past(1):
			return n, os.ErrDeadlineExceeded
		case len(h.buf) < size:
			use := min(len(b), size-len(h.buf))
			h.buf = append(h.buf, b[:use]...)
			b, n = b[use:], n+use
			h.cond.Broadcast()
			continue
		}
		h.cond.Wait()
	}
	return n, nil
}

func (h *half) end(reader bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if reader {
		h.unread = true
	} else {
		h.ended = true
	}
	for _, t := range h.timers {
		if t != nil {
			t.Stop()
		}
	}
	h.cond.Broadcast()
}

func (h *half) until(t time.Time, which int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadlines[which] = t
	if h.timers[which] != nil {
		h.timers[which].Stop()
	}
	if d := time.Until(t); !t.IsZero() && d > 0 {
		h.timers[which] = time.AfterFunc(d, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.cond.Broadcast()
		})
	}
	h.cond.Broadcast()
}

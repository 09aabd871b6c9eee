//go:build linux

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxCalls     = 64               // at a time
	firstFrame   = 10 * time.Second // until the request is there
	writeTimeout = 30 * time.Second // of a frame that nobody takes
)

// A Server answers calls with a Node.
type Server struct {
	Node  Node
	Users []uint32     // IDs of those who may ask
	Log   *slog.Logger // calls that are refused, and panics
}

// Listen makes the socket at path, for the user with the ID only. Another socket
// that is there is replaced.
func Listen(path string, uid int) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Until it has its owner nobody but root can connect.
	if err = os.Chmod(path, 0o600); err == nil {
		err = os.Chown(path, uid, -1)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve answers calls until ctx ends, and waits for those under way.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var calls sync.WaitGroup
	defer calls.Wait()
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	free := make(chan struct{}, maxCalls)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				time.Sleep(100 * time.Millisecond)
				continue
			}
			return err
		}
		calls.Go(func() {
			defer conn.Close()
			s.answer(callCtx, conn, free)
		})
	}
}

// answer carries out the call on conn.
func (s *Server) answer(ctx context.Context, conn *net.UnixConn, free chan struct{}) {
	w := &answers{conn: conn}
	err := func() (err error) {
		// A panic of a verb is not to be the end of PID 1.
		defer func() {
			if p := recover(); p != nil {
				s.Log.Error("a call panicked", "panic", p)
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		if err := s.allowed(conn); err != nil {
			s.Log.Warn("a call was refused", "error", err)
			return err
		}
		select {
		case free <- struct{}{}:
			defer func() { <-free }()
		default:
			return fmt.Errorf("%w: %d calls are under way", ErrBusy, maxCalls)
		}
		return s.call(ctx, conn, w)
	}()
	if err != nil {
		_ = w.frame(kindError, encodeError(err))
		return
	}
	_ = w.frame(kindDone, nil)
}

// allowed asks the kernel who is at the other end.
func (s *Server) allowed(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if !slices.Contains(s.Users, cred.Uid) {
		return fmt.Errorf("%w: process %d of user %d asks, want user %v", fs.ErrPermission, cred.Pid, cred.Uid, s.Users)
	}
	return nil
}

func (s *Server) call(ctx context.Context, conn *net.UnixConn, w *answers) error {
	if err := conn.SetReadDeadline(time.Now().Add(firstFrame)); err != nil {
		return err
	}
	kind, payload, err := readFrame(conn)
	if err != nil {
		return err
	}
	if kind != kindRequest {
		return fmt.Errorf("%w: first frame is %q, want Q", ErrProtocol, kind)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	var r request
	if err := strict(payload, &r); err != nil {
		return err
	}
	v, ok := verbs()[r.Verb]
	if !ok {
		return fmt.Errorf("%w: verb %q", ErrUnimplemented, r.Verb)
	}
	ctx, cancel := context.WithCancelCause(WithCaller(ctx, r.Caller))
	defer cancel(nil)
	c := &call{node: s.Node, args: r.Args, send: w.message}
	var sink *io.PipeWriter
	if v.data {
		c.data, sink = io.Pipe()
	}
	pumped := make(chan struct{})
	go func() {
		defer close(pumped)
		err := pump(conn, sink)
		if sink != nil {
			sink.CloseWithError(err) // nil is io.EOF
		}
		cancel(err)
	}()
	err = v.serve(ctx, c)
	if sink != nil {
		c.data.(*io.PipeReader).Close()
	}
	// The pump ends with its deadline.
	if e := conn.SetReadDeadline(time.Unix(1, 0)); e == nil {
		<-pumped
	}
	if cause := context.Cause(ctx); err != nil && errors.Is(err, context.Canceled) && errors.Is(cause, ErrProtocol) {
		return cause
	}
	return err
}

// pump reads what follows the request into sink, and then until the client goes.
// It returns why there is no more.
func pump(conn net.Conn, sink *io.PipeWriter) error {
	finished := sink == nil
	for {
		kind, payload, err := readFrame(conn)
		switch {
		case err != nil:
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		case kind == kindData && !finished:
			if _, err := sink.Write(payload); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				return err
			}
		case kind == kindFinish && !finished:
			finished = true
			sink.Close()
		default:
			return fmt.Errorf("%w: frame %q after the request", ErrProtocol, kind)
		}
	}
}

// answers writes frames, one at a time.
type answers struct {
	mu   sync.Mutex
	conn net.Conn
}

func (a *answers) message(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.frame(kindMessage, data)
}

func (a *answers) frame(kind byte, payload []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return writeFrame(a.conn, kind, payload)
}

//go:build linux

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// serve answers with node and returns a client.
func serve(t *testing.T, node Node, users ...uint32) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	if users == nil {
		users = []uint32{uint32(os.Getuid())}
	}
	s := &Server{Node: node, Users: users, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &Client{Path: path}
}

// Every verb brings its request there, and its answers and errors back.
func TestEveryVerb(t *testing.T) {
	n := &recorder{}
	c := reflect.ValueOf(serve(t, n))
	node := reflect.TypeFor[Node]()
	if node.NumMethod() != len(verbs()) {
		t.Errorf("%d verbs for %d methods", len(verbs()), node.NumMethod())
	}
	ctx := WithCaller(t.Context(), "somebody")
	for i := range node.NumMethod() {
		m := c.MethodByName(node.Method(i).Name)
		for _, failure := range []error{nil, fmt.Errorf("%w: too early", ErrState)} {
			*n = recorder{err: failure}
			args := []reflect.Value{reflect.ValueOf(ctx)}
			var request any
			var sent []any
			data := ""
			for j := 1; j < m.Type().NumIn(); j++ {
				in := m.Type().In(j)
				switch {
				case in.Kind() == reflect.Func:
					args = append(args, reflect.MakeFunc(in, func(v []reflect.Value) []reflect.Value {
						sent = append(sent, v[0].Interface())
						return []reflect.Value{reflect.Zero(in.Out(0))}
					}))
				case in == reflect.TypeFor[io.Reader]():
					data = strings.Repeat("image", 1<<17)
					args = append(args, reflect.ValueOf(iotest.HalfReader(strings.NewReader(data))))
				default:
					v := reflect.New(in)
					fill(v.Elem(), "x")
					request = v.Elem().Interface()
					args = append(args, v.Elem())
				}
			}
			name := node.Method(i).Name
			out := m.Call(args)
			if n.verb != name || n.caller != "somebody" || !reflect.DeepEqual(n.args, request) || n.data != data {
				t.Errorf("%s arrived as %s of %q with %+v and %d bytes, want %+v and %d", name, n.verb, n.caller, n.args, len(n.data), request, len(data))
			}
			err, _ := out[len(out)-1].Interface().(error)
			if failure != nil {
				if !errors.Is(err, ErrState) || err.Error() != failure.Error() {
					t.Errorf("%s: error %v, want %v", name, err, failure)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if len(out) == 2 {
				sent = append(sent, out[0].Interface())
			}
			for _, got := range sent {
				want := reflect.New(reflect.TypeOf(got))
				fill(want.Elem(), "x")
				if !reflect.DeepEqual(got, want.Elem().Interface()) {
					t.Errorf("%s answered %+v, want %+v", name, got, want.Elem().Interface())
				}
			}
			if args[len(args)-1].Kind() == reflect.Func && len(sent) != 2 {
				t.Errorf("%s answered %d times, want 2", name, len(sent))
			}
		}
	}
}

func TestUnimplemented(t *testing.T) {
	c := serve(t, Unimplemented{})
	if _, err := c.Version(t.Context()); !errors.Is(err, ErrUnimplemented) || err.Error() != "this node cannot do that" {
		t.Errorf("error %v", err)
	}
	if err := c.Identities(t.Context(), nil); !errors.Is(err, ErrUnimplemented) {
		t.Errorf("error %v", err)
	}
}

// Errors keep their meaning.
func TestErrors(t *testing.T) {
	n := &recorder{}
	c := serve(t, n)
	for _, want := range []error{ErrUnimplemented, ErrInvalid, ErrState, ErrBusy, fs.ErrNotExist, fs.ErrExist, fs.ErrPermission} {
		n.err = fmt.Errorf("a word on %w", want)
		if _, err := c.Health(t.Context()); !errors.Is(err, want) || err.Error() != n.err.Error() {
			t.Errorf("error %v, want %v", err, n.err)
		}
	}
	n.err = errors.New(strings.Repeat("long", MaxFrame))
	if _, err := c.Health(t.Context()); err == nil || len(err.Error()) != maxMessage+len("…") {
		t.Errorf("error of %d bytes", len(err.Error()))
	}
	if _, err := (&Client{Path: c.Path + "x"}).Health(t.Context()); !errors.Is(err, ErrUnreachable) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

type panicking struct{ Unimplemented }

func (panicking) Version(context.Context) (Version, error) { panic("a bug") }

func TestPanic(t *testing.T) {
	c := serve(t, panicking{})
	for range 2 {
		if _, err := c.Version(t.Context()); err == nil || err.Error() != "panic: a bug" {
			t.Errorf("error %v", err)
		}
	}
}

// Only the users that are named may ask.
func TestPeer(t *testing.T) {
	c := serve(t, &recorder{}, uint32(os.Getuid())+1)
	_, err := c.Version(t.Context())
	want := fmt.Sprintf("permission denied: process %d of user %d asks, want user [%d]", os.Getpid(), os.Getuid(), os.Getuid()+1)
	if !errors.Is(err, fs.ErrPermission) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if fi, err := os.Stat(c.Path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket has the mode %v, %v", fi.Mode(), err)
	}
}

// endless follows until it is told to stop.
type endless struct {
	Unimplemented
	stopped chan error
}

func (e endless) Events(ctx context.Context, _ TailRequest, send func(Event) error) error {
	if err := send(Event{Sequence: 1}); err != nil {
		return err
	}
	<-ctx.Done()
	e.stopped <- context.Cause(ctx)
	return ctx.Err()
}

func (e endless) Upgrade(_ context.Context, _ UpgradeRequest, image io.Reader, _ func(UpgradeProgress) error) error {
	_, err := io.Copy(io.Discard, image)
	e.stopped <- err
	return err
}

// Who goes ends the call.
func TestCancel(t *testing.T) {
	n := endless{stopped: make(chan error, 1)}
	c := serve(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Events(ctx, TailRequest{}, func(Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if err := <-n.stopped; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the call ended with %v", err)
	}
	enough := errors.New("enough")
	if err := c.Events(t.Context(), TailRequest{}, func(Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
	<-n.stopped
}

// An image that ends early is not taken for a whole one.
func TestUploadBreaks(t *testing.T) {
	n := endless{stopped: make(chan error, 1)}
	c := serve(t, n)
	broken := errors.New("broken")
	image := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(broken))
	if err := c.Upgrade(t.Context(), UpgradeRequest{}, image, nil); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if err := <-n.stopped; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the node saw %v", err)
	}
}

// A node that wants no more does not make the sender wait.
func TestUploadRefused(t *testing.T) {
	c := serve(t, Unimplemented{})
	err := c.Upgrade(t.Context(), UpgradeRequest{}, io.LimitReader(zeros{}, 1<<40), nil)
	if !errors.Is(err, ErrUnimplemented) {
		t.Errorf("error %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestRedact(t *testing.T) {
	n := &metaNode{}
	c := serve(t, n)
	got, err := c.Meta(t.Context(), MetaRequest{})
	want := MetaList{[]MetaValue{{Key: 6, Value: []byte("A")}, {Key: 16, Redacted: true}, {Key: 0x80, Redacted: true}, {Key: 0xf0, Redacted: true}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err := c.Meta(t.Context(), MetaRequest{Secrets: true}); err != nil || string(got.Values[1].Value) != "token" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{fmt.Sprint(Identity{Key: Secret("k")}), fmt.Sprintf("%+v %#v", Identity{Key: Secret("k")}, Secret("k"))} {
		if !strings.Contains(text, secret) || strings.Contains(text, "107") || strings.Contains(text, "0x6b") {
			t.Errorf("a secret is shown: %s", text)
		}
	}
}

type metaNode struct{ Unimplemented }

func (metaNode) Meta(context.Context, MetaRequest) (MetaList, error) {
	return MetaList{[]MetaValue{{Key: 6, Value: []byte("A")}, {Key: 16, Value: []byte("token")}, {Key: 0x80, Value: []byte("mine")}, {Key: 0xf0, Value: []byte("config")}}}, nil
}

func (metaNode) ApplyConfig(context.Context, ConfigChange) (ConfigResult, error) {
	return ConfigResult{Diff: strings.Repeat("+a line\n", maxDiff)}, nil
}

func TestConfigLimits(t *testing.T) {
	c := serve(t, metaNode{})
	r, err := c.ApplyConfig(t.Context(), ConfigChange{Config: make([]byte, MaxConfig)})
	if want := fmt.Sprintf("\\ %d more bytes\n", 7*maxDiff); err != nil || !strings.HasSuffix(r.Diff, "+a line\n"+want) {
		t.Errorf("the diff ends %q, %v", r.Diff[max(len(r.Diff)-40, 0):], err)
	}
	_, err = c.ApplyConfig(t.Context(), ConfigChange{Config: make([]byte, MaxConfig+1)})
	if want := "invalid request: configuration of 1048577 bytes, want at most 1048576"; !errors.Is(err, ErrInvalid) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// More calls than maxCalls are refused at once, and room is made again.
func TestBusy(t *testing.T) {
	n := endless{stopped: make(chan error, maxCalls)}
	c := serve(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{}, maxCalls)
	for range maxCalls {
		go func() { _ = c.Events(ctx, TailRequest{}, func(Event) error { started <- struct{}{}; return nil }) }()
	}
	for range maxCalls {
		<-started
	}
	if err := c.Events(t.Context(), TailRequest{}, nil); !errors.Is(err, ErrBusy) || err.Error() != "the node is busy: 64 calls are under way" {
		t.Errorf("error %v", err)
	}
	cancel()
	for range maxCalls {
		<-n.stopped
	}
	for try := 0; ; try++ {
		_, err := c.Version(t.Context())
		if errors.Is(err, ErrUnimplemented) {
			break
		}
		if try == 100 {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// say sends bytes and returns the error frame that is the answer.
func say(t *testing.T, c *Client, data []byte) error {
	t.Helper()
	conn, err := net.Dial("unix", c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	kind, payload, err := readFrame(conn)
	if err != nil || kind != kindError {
		t.Fatalf("answer %q %s, %v", kind, payload, err)
	}
	return decodeError(payload)
}

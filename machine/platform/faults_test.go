package platform

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const (
	serverURL  = "http://config.test/node.yaml"
	serverArg  = ArgConfig + "=" + serverURL
	serverName = "config.test:80"
)

func zipped(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// text is a server that has text.
func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s) }
}

// code is a server that answers with a status.
func code(n int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(n)
	}
}

// hijacked is a server that begins an answer and goes on with what header writes,
// until it fails.
func hijacked(header func(io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, err = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for err == nil {
			err = header(c)
		}
	}
}

// TestFaults asks a server that does what a server should not, for as long as
// patience lasts: no time passes but that of the bubble.
func TestFaults(t *testing.T) {
	const failed = "no machine configuration can be used:\n  kiln.config: "
	const get = failed + "GET " + serverURL + ": "
	for _, c := range []struct {
		name  string
		serve http.HandlerFunc
		want  string
		asked int // times, at most; 1 is once and not again
	}{
		{"500", code(500), get + "500 Internal Server Error", 20},
		{"503", code(503), get + "503 Service Unavailable", 20},
		{"429, later", code(429, "Retry-After", "50"), get + "429 Too Many Requests", 4},
		{"503, much later", code(503, "Retry-After", "86400"), get + "503 Service Unavailable", 4},
		{"404", code(404), get + "404 Not Found", 20},
		{"401", code(401), get + "401 Unauthorized: the server does not let this machine have it", 1},
		{"403", code(403), get + "403 Forbidden: the server does not let this machine have it", 1},
		{"no such code", code(418), get + "418 I'm a teapot", 1},
		{"empty", text(""), failed + "the machine configuration is empty", 1},
		{"white space", text(" \n\t\n"), failed + "the machine configuration is empty", 1},
		{"huge, announced", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1099511627776")
			fmt.Fprint(w, "x")
		}, get + "the answer has 1099511627776 bytes, want at most 1048576", 1},
		{"huge", func(w http.ResponseWriter, _ *http.Request) {
			block := bytes.Repeat([]byte("# x\n"), 16<<10)
			for {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		}, get + "the answer has more than 1048576 bytes", 1},
		{"slow to begin", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			get + "the answer took too long", 9},
		{"slow to end", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				fmt.Fprint(w, "# slow\n")
				w.(http.Flusher).Flush()
				select {
				case <-time.After(time.Second):
				case <-r.Context().Done():
				}
			}
		}, get + "the answer took too long", 6},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, config)
		}, get + "unexpected EOF", 20},
		{"reset", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, get + "EOF", 20},
		{"no HTTP", func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = io.WriteString(c, "220 mail.example ESMTP\r\n")
				c.Close()
			}
		}, get + `net/http: HTTP/1.x transport connection broken: malformed HTTP status code "mail.example"`, 20},
		{"header without end", hijacked(func(c io.Writer) error {
			_, err := fmt.Fprintf(c, "X-More: %01000d\r\n", 0)
			return err
		}), get + "net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded 65536 bytes; aborted", 20},
		{"header that is slow", hijacked(func(c io.Writer) error {
			time.Sleep(time.Second)
			_, err := fmt.Fprint(c, "X-More: 1\r\n")
			return err
		}), get + "the answer took too long", 9},
		{"chunks that are none", func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
				c.Close()
			}
		}, get + "invalid byte in chunk length", 20},
		{"redirect to what is slow", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/slow" {
				http.Redirect(w, r, "/slow", http.StatusFound)
				return
			}
			<-r.Context().Done()
		}, get + "the answer took too long", 18},
		{"redirect loop", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/again?"+r.URL.RawQuery+"x", http.StatusFound)
		}, get + "more than 5 redirections", 6},
		{"redirect elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "ftp://user:secret@other.test/x?secret", http.StatusFound)
		}, get + `unsupported protocol scheme "ftp"`, 20},
		{"garbage", text("\x7fELF\x02\x01\x01\x00\x00"), failed + "found 9 bytes that are no text in UTF-8; want the YAML of 'kiln config generate'", 1},
		{"latin-1", text("hostname: n\xf6de\n"), failed + "found 15 bytes that are no text in UTF-8; want the YAML of 'kiln config generate'", 1},
		{"cloud-init", text("#cloud-config\nusers: []\n"), failed + "found a cloud-init configuration (#cloud-config); want the YAML of 'kiln config generate'", 1},
		{"script", text("#!/bin/sh\nexit\n"), failed + "found a script (#!); want the YAML of 'kiln config generate'", 1},
		{"MIME", text("Content-Type: multipart/mixed; boundary=x\n\n--x\n"), failed + "found a MIME message, as cloud-init takes it; want the YAML of 'kiln config generate'", 1},
		{"Ignition", text("{ \"ignition\": {\"version\": \"3.0.0\"}}"), failed + "found an Ignition configuration; want the YAML of 'kiln config generate'", 1},
		{"login page", text("<!DOCTYPE html><html>"), failed + "found a page for a browser; is a login page or a proxy in the way?; want the YAML of 'kiln config generate'", 1},
		{"gzip bomb", text(zipped(t, strings.Repeat("\n", 4<<20))), failed + "the machine configuration has more than 1048576 bytes when it is decompressed", 1},
		{"gzip cut off", text(zipped(t, config)[:20]), failed + "the machine configuration is damaged gzip: unexpected EOF", 1},
		{"gzip of a script", text(zipped(t, "#!/bin/sh")), failed + "found a script (#!); want the YAML of 'kiln config generate'", 1},
		{"no gzip", text("\x1f\x8bxxxxxxxxxxxxxxxx"), failed + "the machine configuration begins as gzip: gzip: invalid header", 1},
		{"not valid", text("version: v9\n"), failed + "the machine configuration is not valid: node.yaml:1:10: version v9", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				defer func() {
					n.close()
					time.Sleep(time.Minute) // those that have hijacked a connection see it at their next write
				}()
				var count atomic.Int64
				n.serve(serverName, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					count.Add(1)
					c.serve(w, r)
				}))
				p := DefaultPolicy()
				p.Validate = func(b []byte) error {
					if strings.Contains(string(b), "v9") {
						return errors.New("node.yaml:1:10: version v9")
					}
					return nil
				}
				var events []Event
				p.Progress = func(e Event) { events = append(events, e) }
				start := time.Now()
				_, err := p.Acquire(t.Context(), New("metal", machine(t, n, serverArg)).Sources)
				wantError(t, err, c.want)
				asked := int(count.Load())
				if asked < 1 || asked > c.asked || c.asked > 6 && asked < 3 {
					t.Errorf("asked %d times, want at most %d", asked, c.asked)
				}
				took := time.Since(start)
				if again := events[2].Again > 0; took > patienceNetwork+p.Attempt || again && took < patienceNetwork/2 {
					t.Errorf("gave up after %v", took)
				}
			})
		})
	}
}

// TestRecovers is a server that is there at last.
func TestRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.close()
		var p = DefaultPolicy()
		p.Jitter = func() float64 { return 1 }
		var lines []string
		p.Progress = func(e Event) {
			lines = append(lines, e.String())
			if len(lines) == 4 {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.serve(serverName, text(zipped(t, "\ufeff"+config)))
			}
		}
		start := time.Now()
		r, err := p.Acquire(t.Context(), New("metal", machine(t, n, serverArg)).Sources)
		if err != nil {
			t.Fatal(err)
		}
		if string(r.Data) != config || r.Source != ArgConfig || r.Failed != nil {
			t.Errorf("found %q from %s, failed %v", r.Data, r.Source, r.Failed)
		}
		if took, want := time.Since(start), 1500*time.Millisecond; took != want {
			t.Errorf("took %v, want %v: half of 1 and 2 seconds", took, want)
		}
		if want := "kiln.config: GET http://config.test/node.yaml: dial tcp: connection refused; asking again in 500ms"; lines[2] != want {
			t.Errorf("told %q, want %q", lines[2], want)
		}
		if want := "kiln.config: found"; lines[4] != want {
			t.Errorf("told %q, want %q", lines[4], want)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.close()
		n.serve(serverName, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		for _, after := range []time.Duration{time.Second, 15500 * time.Millisecond} { // while asking, while waiting
			ctx, cancel := context.WithTimeout(t.Context(), after)
			start := time.Now()
			_, err := DefaultPolicy().Acquire(ctx, New("metal", machine(t, n, serverArg)).Sources)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != after {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		}
	})
}

// TestStuckSource is a source that does not end by itself.
func TestStuckSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		_, err := DefaultPolicy().Acquire(t.Context(), []Source{{Name: "stuck", Patience: time.Minute, Configuration: func(ctx context.Context) ([]byte, error) {
			asked++
			<-ctx.Done()
			return nil, ctx.Err()
		}}})
		wantError(t, err, "no machine configuration can be used:\n  stuck: context deadline exceeded")
		if asked != 2 {
			t.Errorf("asked %d times, want 2", asked)
		}
	})
}

// TestSecrets looks for what must not be told.
func TestSecrets(t *testing.T) {
	for _, h := range []http.HandlerFunc{code(500), code(403), nil} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			defer n.close()
			if h != nil {
				n.serve(serverName, h)
			}
			_, err := quick().Acquire(t.Context(), New("metal", machine(t, n, ArgConfig+"=http://me:hunter2@config.test/node.yaml?token=hunter3")).Sources)
			if err == nil || !strings.Contains(err.Error(), serverURL) || strings.Contains(err.Error(), "hunter") {
				t.Errorf("error %v, want one with the URL, without password and query", err)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	const date = "Sun, 01 Nov 2026 10:00:00 GMT"
	for _, c := range []struct {
		header http.Header
		want   time.Duration
	}{
		{http.Header{}, 0},
		{http.Header{"Retry-After": {"7"}}, 7 * time.Second},
		{http.Header{"Retry-After": {"-7"}}, 0},
		{http.Header{"Retry-After": {"99999999999999999999"}}, 0},
		{http.Header{"Retry-After": {"3600"}}, time.Minute},
		{http.Header{"Retry-After": {"Sun, 01 Nov 2026 10:00:20 GMT"}, "Date": {date}}, 20 * time.Second},
		{http.Header{"Retry-After": {"Sun, 01 Nov 2026 09:00:20 GMT"}, "Date": {date}}, 0},
		{http.Header{"Retry-After": {"Sun, 01 Nov 2026 10:00:20 GMT"}}, 0},
		{http.Header{"Retry-After": {"soon"}, "Date": {date}}, 0},
	} {
		if got := retryAfter(c.header); got != c.want {
			t.Errorf("%v: %v, want %v", c.header, got, c.want)
		}
	}
}

// TestBomb wants what does not fit not to be unpacked.
func TestBomb(t *testing.T) {
	bomb := []byte(zipped(t, strings.Repeat("\n", 64<<20)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Decode(bomb)
	runtime.ReadMemStats(&after)
	wantError(t, err, "the machine configuration has more than 1048576 bytes when it is decompressed")
	if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
		t.Errorf("allocated %d bytes", n)
	}
}

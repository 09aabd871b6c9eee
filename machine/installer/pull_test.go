//go:build linux

package installer

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func kilnImage(t *testing.T, arch string) v1.Image {
	t.Helper()
	files := tree.New()
	for name, content := range map[string]string{"usr/bin/kiln": tool, "kiln/source.json": arch} {
		if err := files.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := files.Add(name, &tree.Inode{Mode: 0o755, Content: strings.NewReader(content)}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := ociimage.Layer(t.Context(), files, ociimage.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ociimage.Image(ociimage.Config{Architecture: arch, Entrypoint: []string{"/usr/bin/kiln"}, Env: []string{"KILN_SOURCE=/kiln"}}, l)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A server is a registry that somebody else has written, which wants a token that is
// given to who has a password.
func server(t *testing.T, change func(path string, w http.ResponseWriter) bool) (*httptest.Server, *Registry, name.Reference) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := true
	var s *httptest.Server
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case open:
			inner.ServeHTTP(w, r)
		case r.URL.Path == "/token":
			if user != "u" || password != "p" || r.URL.Query().Get("scope") != "repository:kiln/installer:pull" || r.URL.Query().Get("service") != "a, b" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			fmt.Fprint(w, `{"token":"T"}`)
		case r.Header.Get("Authorization") != "Bearer T":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="a, b",scope="repository:kiln/installer:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
		case change == nil || !change(r.URL.Path, w):
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "https://") + "/kiln/installer:v1")
	if err != nil {
		t.Fatal(err)
	}
	both := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: kilnImage(t, "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: kilnImage(t, "amd64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	if err := remote.WriteIndex(ref, both, remote.WithTransport(s.Client().Transport)); err != nil {
		t.Fatal(err)
	}
	open = false
	return s, &Registry{Client: s.Client(), Base: s.URL + "/v2", User: "u", Password: "p"}, ref
}

func TestPull(t *testing.T) {
	_, r, ref := server(t, nil)
	var seen []int64
	img, err := New(t.TempDir(), "amd64").Pull(t.Context(), r, ref, func(done, total int64) error {
		seen = append(seen, done)
		if done > total {
			t.Errorf("%d of %d bytes", done, total)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(img.Source, "source.json")); err != nil || string(data) != "amd64" || len(seen) == 0 || !slices.IsSorted(seen) {
		t.Errorf("%q, %v, %v", data, err, seen)
	}
}

func TestPullErrors(t *testing.T) {
	nothing := func(int64, int64) error { return nil }
	_, r, ref := server(t, nil)
	if _, err := New(t.TempDir(), "riscv64").Pull(t.Context(), r, ref, nothing); !errors.Is(err, ErrImage) || !strings.HasSuffix(err.Error(), "it is for linux/arm64, linux/amd64, want linux/riscv64") {
		t.Error(err)
	}
	full := errors.New("full")
	if _, err := New(t.TempDir(), "amd64").Pull(t.Context(), r, ref, func(int64, int64) error { return full }); !errors.Is(err, full) {
		t.Error(err)
	}
	other, err := name.ParseReference(ref.Context().String() + ":v2")
	if err != nil {
		t.Fatal(err)
	}
	var refused *StatusError
	if _, err := New(t.TempDir(), "amd64").Pull(t.Context(), r, other, nothing); !errors.As(err, &refused) || refused.Status != "404 Not Found" || refused.Text != "MANIFEST_UNKNOWN Unknown manifest" {
		t.Error(err)
	}
	if _, err := New(t.TempDir(), "amd64").Pull(t.Context(), &Registry{Client: r.Client, Base: r.Base}, ref, nothing); !errors.As(err, &refused) || refused.Status != "403 Forbidden" {
		t.Error(err)
	}

	_, r, ref = server(t, func(path string, w http.ResponseWriter) bool {
		if !strings.Contains(path, "/blobs/") {
			return false
		}
		fmt.Fprint(w, "{}")
		return true
	})
	if _, err := New(t.TempDir(), "amd64").Pull(t.Context(), r, ref, nothing); !errors.Is(err, ErrImage) || !strings.HasSuffix(err.Error(), ": it is damaged") {
		t.Error(err)
	}
	// Credentials go nowhere without TLS.
	r.authorization = ""
	if err := r.authorize(t.Context(), `Bearer realm="http://example.com/token"`); err == nil || !strings.HasSuffix(err.Error(), `credentials are to be had at "http://example.com/token", want a URL with https`) {
		t.Error(err)
	}
}

func FuzzParameters(f *testing.F) {
	f.Add(`realm="https://a/b",service=c,scope="d,e"`)
	f.Add(`a="`)
	f.Fuzz(func(_ *testing.T, s string) { parameters(s) })
}

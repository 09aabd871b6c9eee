package extensions

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const user, password = "engineer", "correct horse"

// serve starts a registry that wants a user and a password, and returns its
// name. The user has none yet.
func serve(t *testing.T, change func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		if change == nil || !change(w, r) {
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// login is what "docker login" leaves behind.
func login(t *testing.T, host string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, auth)
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRegistry(t *testing.T) {
	host := serve(t, nil)
	limits := Limits{Insecure: []string{host}}
	img := imageOf(t, opened(t), "amd64")
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref := host + "/example/demo:1.0"
	if _, err := Push(t.Context(), img, ref, limits.Insecure); err == nil || !strings.Contains(err.Error(), "log in with 'docker login "+host+"'") {
		t.Errorf("pushed without a password: %v", err)
	}
	if _, err := Open(t.Context(), ref, "amd64", limits); err == nil || !strings.Contains(err.Error(), "registry "+host+" refuses") {
		t.Errorf("pulled without a password: %v", err)
	}
	login(t, host)
	got, err := Push(t.Context(), img, ref, limits.Insecure)
	if err != nil || got != digest.String() {
		t.Fatalf("pushed %s, %v; want %s", got, err, digest)
	}
	checkDemo(t, "by tag", ref, limits)
	checkDemo(t, "by digest", host+"/example/demo@"+got, limits)
	checkDemo(t, "by tag and digest", ref+"@"+got, limits)
	e, err := Open(t.Context(), ref, "amd64", limits)
	if err != nil {
		t.Fatal(err)
	}
	if e.ImageDigest != got {
		t.Errorf("image %s, want %s", e.ImageDigest, got)
	}
	if again, err := Push(t.Context(), imageOf(t, e, "amd64"), host+"/example/copy:1", limits.Insecure); err != nil || again != got {
		t.Errorf("a copy has digest %s, %v; want %s", again, err, got)
	}

	for what, tt := range map[string]struct {
		ref    string
		arch   string
		limits Limits
		is     error
		want   string
	}{
		"architecture": {ref, "arm64", limits, ErrFormat, "for linux/amd64, want linux/arm64"},
		"no such tag":  {host + "/example/demo:2", "amd64", limits, fs.ErrNotExist, "does not exist in the registry"},
		"no digest":    {host + "/example/demo@sha256:" + strings.Repeat("0", 64), "amd64", limits, fs.ErrNotExist, "does not exist in the registry"},
		"plain HTTP":   {ref, "amd64", Limits{}, ErrHostile, "registry " + host + " was not asked over plain HTTP; allow it with --insecure " + host},
		"other host":   {ref, "amd64", Limits{Insecure: []string{"127.0.0.1", "example.com"}}, ErrHostile, "allow it with --insecure " + host},
		"no tag":       {host + "/example/demo", "amd64", limits, fs.ErrNotExist, "HOST/NAME:TAG or HOST/NAME@sha256:…"},
		"bad digest":   {host + "/example/demo@sha256:12", "amd64", limits, fs.ErrNotExist, "HOST/NAME:TAG or HOST/NAME@sha256:…"},
		"no host":      {"example/demo:1", "amd64", limits, fs.ErrNotExist, "HOST/NAME:TAG or HOST/NAME@sha256:…"},
		"a path":       {"./none.tar", "amd64", limits, fs.ErrNotExist, "an image in a registry is HOST/NAME:TAG"},
	} {
		if _, err := Open(t.Context(), tt.ref, tt.arch, tt.limits); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
	if _, err := Push(t.Context(), img, host+"/example/demo@"+got, limits.Insecure); err == nil || !strings.Contains(err.Error(), "want HOST/NAME:TAG, not a digest") {
		t.Errorf("pushed to a digest: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, ref, "amd64", limits); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// TestRegistryIndex pulls from a multi-architecture index.
func TestRegistryIndex(t *testing.T) {
	host := serve(t, nil)
	login(t, host)
	limits := Limits{Insecure: []string{host}}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign(t, "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: foreign(t, "amd64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
	)
	ref, err := name.ParseReference(host+"/example/multi:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, newWire(limits.Insecure).options(t.Context())...); err != nil {
		t.Fatal(err)
	}
	checkDemo(t, "index", ref.Name(), limits)
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	checkDemo(t, "index by digest", ref.Context().Name()+"@"+digest.String(), limits)
	if _, err := Open(t.Context(), ref.Name(), "riscv64", limits); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "for linux/arm64, linux/amd64, want linux/riscv64") {
		t.Error(err)
	}
}

// TestLyingRegistry: what is fetched by digest is compared with it.
func TestLyingRegistry(t *testing.T) {
	var mu sync.Mutex
	lie := ""
	host := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if lie == "" || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, lie) {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		io.WriteString(w, `{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}`)
		return true
	})
	login(t, host)
	limits := Limits{Insecure: []string{host}}
	img := imageOf(t, opened(t), "amd64")
	digest, err := Push(t.Context(), img, host+"/example/demo:1.0", limits.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	for what, path := range map[string]string{"manifest": "/manifests/sha256:", "configuration": config.String(), "layer": layer.String()} {
		mu.Lock()
		lie = path
		mu.Unlock()
		if _, err := Open(t.Context(), host+"/example/demo@"+digest, "amd64", limits); err == nil || !strings.Contains(err.Error(), digest) {
			t.Errorf("another %s: %v", what, err)
		}
	}
}

// TestRedirectToPlainHTTP: a registry cannot lead to a host that the user has
// not allowed.
func TestRedirectToPlainHTTP(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the other host was asked") }))
	t.Cleanup(other.Close)
	host := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			return false
		}
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	login(t, host)
	limits := Limits{Insecure: []string{host}}
	if _, err := Push(t.Context(), imageOf(t, opened(t), "amd64"), host+"/example/demo:1.0", limits.Insecure); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), host+"/example/demo:1.0", "amd64", limits); err == nil || !strings.Contains(err.Error(), "plain HTTP is not allowed") {
		t.Error(err)
	}
}

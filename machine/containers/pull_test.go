//go:build linux

package containers

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ociregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/registry"
)

// mirror is a registry with an image in two places, behind a certificate of its
// own. What is below /private/ is for a user only.
func mirror(t *testing.T) *httptest.Server {
	t.Helper()
	inner := ociregistry.New(ociregistry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		private := strings.Contains(r.URL.Path, "/private/")
		if user, password, _ := r.BasicAuth(); private && r.Method != http.MethodPut && r.Method != http.MethodPost && r.Method != http.MethodPatch && (user != "node" || password != `pass"word\`) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// push stores an image in the registry.
func push(t *testing.T, s *httptest.Server, path string) {
	t.Helper()
	ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "https://") + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	transport := s.Client().Transport
	if err := remote.Write(ref, cacheImage(t, "amd64", path), remote.WithTransport(basic{transport})); err != nil {
		t.Fatal(err)
	}
}

// basic is a client with the user's password.
type basic struct{ http.RoundTripper }

func (b basic) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth("node", `pass"word\`)
	return b.RoundTripper.RoundTrip(r)
}

// containerd reads what a configuration says of registries: mirrors, also those that
// are all there is to ask, certificates and credentials of a mirror's host.
func TestPull(t *testing.T) {
	socket := daemon(t)
	s := mirror(t)
	push(t, s, "open/x:1")
	push(t, s, "private/x:1")
	host := strings.TrimPrefix(s.URL, "https://")
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	indented := "  " + strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n  ")
	const header = "apiVersion: v1alpha1\nkind: Registry\n"
	only := header + "name: registry.example.com\nmirrors: [{url: " + s.URL + "}]\nnoFallback: true\n---\n"
	trusted := header + "name: " + host + "\nca: |\n" + indented + "\n"
	for _, tt := range []struct{ what, config, image, err string }{
		{"no certificate", only, "registry.example.com/open/x:1", "certificate"},
		{"a mirror", only + trusted, "registry.example.com/open/x:1", ""},
		{"any certificate", only + header + "name: " + host + "\ninsecureSkipVerify: true\n", "registry.example.com/open/x:1", ""},
		{"itself", trusted, host + "/open/x:1", ""},
		{"several mirrors", header + "name: registry.example.com\nmirrors: [{url: 'http://127.0.0.1:1'}, {url: " + s.URL + "/v2, overridePath: true}]\nnoFallback: true\n---\n" + trusted, "registry.example.com/open/x:1", ""},
		{"any host", header + "name: '*'\nmirrors: [{url: " + s.URL + "}]\nnoFallback: true\n---\n" + trusted, "other.example.com/open/x:1", ""},
		{"no password", only + trusted, "registry.example.com/private/x:1", "401"},
		{"a password", only + trusted + "auth: {username: node, password: 'pass\"word\\'}\n", "registry.example.com/private/x:1", ""},
		{"a wrong password", only + trusted + "auth: {username: node, password: wrong}\n", "registry.example.com/private/x:1", "401"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			c, err := config.Parse("config", []byte(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if _, err := registry.Sync(dir, registry.Hosts(c), 0o644); err != nil {
				t.Fatal(err)
			}
			secrets := filepath.Join(t.TempDir(), "credentials")
			if data := registry.Client(c); data != nil {
				if err := os.WriteFile(secrets, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// A name space of its own, so that nothing is there already.
			x := client(t, socket, "test-"+strings.ReplaceAll(tt.what, " ", "-"))
			err = x.pull(t.Context(), tt.image, dir, secrets)
			if tt.err == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v, want %s", err, tt.err)
			}
		})
	}
}

// containerd takes the credentials of a configuration over into its own.
func TestDaemonCredentials(t *testing.T) {
	path, dir := program(t)
	c, err := config.Parse("config", []byte("apiVersion: v1alpha1\nkind: Registry\nname: "+hub()+"\nauth: {username: node, password: 'pass\"word\\'}\n"+
		"---\napiVersion: v1alpha1\nkind: Registry\nname: example.com:5000\nauth: {identityToken: tok}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"config.toml": "version = 4\nimports = ['" + dir + "/more.toml']\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '/etc/containerd/certs.d'\n",
		"more.toml":   string(registry.Daemon(c)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(path, "--config", filepath.Join(dir, "config.toml"), "config", "dump").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{
		`config_path = '/etc/containerd/certs.d'`,
		`registry.configs.'registry-1.` + hub() + `'.auth] username = 'node' password = 'pass"word\'`,
		`registry.configs.'example.com:5000'.auth] username = '' password = '' auth = '' identitytoken = 'tok'`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

//go:build linux

package installer

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// A Registry is where an image is pulled from, as the OCI distribution specification
// 1.1 has it.
type Registry struct {
	Client   *http.Client
	Base     string // URL, with /v2 or what stands for it
	User     string // "" for nobody
	Password string

	authorization string
}

// maxError is how much of a registry's error is read, in bytes.
const maxError = 64 << 10

// Pull unpacks the image that a reference names. progress is told how many bytes of
// how many are there.
func (u *Unpacker) Pull(ctx context.Context, r *Registry, ref name.Reference, progress func(done, total int64) error) (*Image, error) {
	repository := ref.Context().RepositoryStr()
	index, err := r.manifest(ctx, repository, ref.Identifier())
	if err != nil {
		return nil, err
	}
	m, err := find(index, u.arch, func(d descriptor) ([]byte, error) { return r.manifest(ctx, repository, d.Digest) })
	if err != nil {
		return nil, err
	}
	var total, done int64
	blobs := append([]descriptor{m.Config}, m.Layers...)
	for _, d := range blobs {
		if total += d.Size; d.Size < 0 || total > maxBytes {
			return nil, refuse("blobs of more than %d bytes", int64(maxBytes))
		}
	}
	for _, d := range blobs {
		body, err := r.get(ctx, "/"+repository+"/blobs/"+d.Digest, "")
		if err != nil {
			return nil, err
		}
		err = u.Blob(ctx, d.Digest, &counter{body, d.Size, func(n int) error {
			done += int64(n)
			return progress(done, total)
		}})
		body.Close()
		if err != nil {
			return nil, err
		}
	}
	last, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return u.Image(last)
}

// counter reads at most left bytes, and tells of them.
type counter struct {
	io.Reader
	left int64
	told func(int) error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, refuse("a blob has more bytes than the manifest says")
	}
	if e := c.told(n); e != nil {
		return n, e
	}
	return n, err
}

// manifest returns a manifest or an index, by tag or by digest.
func (r *Registry) manifest(ctx context.Context, repository, reference string) ([]byte, error) {
	const accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
		"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
	body, err := r.get(ctx, "/"+repository+"/manifests/"+reference, accept)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := limited(body, maxJSON)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(reference, "sha256:") && fmt.Sprintf("sha256:%x", sha256.Sum256(data)) != reference {
		return nil, refuse("manifest %s has another digest: it is damaged", reference)
	}
	return data, nil
}

// get asks for a path, with credentials if the registry wants some.
func (r *Registry) get(ctx context.Context, path, accept string) (io.ReadCloser, error) {
	for try := 0; ; try++ {
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Base+path, nil)
		if err != nil {
			return nil, err
		}
		if accept != "" {
			q.Header.Set("Accept", accept)
		}
		if r.authorization != "" {
			q.Header.Set("Authorization", r.authorization) // not sent on to other hosts
		}
		a, err := r.Client.Do(q)
		if err != nil {
			return nil, err
		}
		if a.StatusCode == http.StatusOK {
			return a.Body, nil
		}
		text, _ := io.ReadAll(io.LimitReader(a.Body, maxError))
		a.Body.Close()
		if a.StatusCode == http.StatusUnauthorized && try == 0 {
			if err := r.authorize(ctx, a.Header.Get("WWW-Authenticate")); err != nil {
				return nil, err
			}
			continue
		}
		return nil, &StatusError{URL: r.Base + path, Status: a.Status, Text: registryError(text)}
	}
}

// StatusError is a registry's refusal.
type StatusError struct{ URL, Status, Text string }

func (e *StatusError) Error() string {
	if e.Text == "" {
		return e.URL + ": " + e.Status
	}
	return e.URL + ": " + e.Status + ": " + e.Text
}

// registryError is what the registry says for people.
func registryError(body []byte) string {
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &e) != nil || len(e.Errors) == 0 {
		return ""
	}
	return strings.TrimSpace(e.Errors[0].Code + " " + e.Errors[0].Message)
}

// authorize gets what the registry asks for.
func (r *Registry) authorize(ctx context.Context, challenge string) error {
	scheme, rest, _ := strings.Cut(challenge, " ")
	switch {
	case strings.EqualFold(scheme, "Basic") && r.User != "":
		var q http.Request
		q.Header = http.Header{}
		q.SetBasicAuth(r.User, r.Password)
		r.authorization = q.Header.Get("Authorization")
		return nil
	case !strings.EqualFold(scheme, "Bearer"):
		return fmt.Errorf("%s asks for credentials, and the configuration has no Registry with auth for it", r.Base)
	}
	p := parameters(rest)
	realm, err := url.Parse(p["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && strings.HasPrefix(r.Base, "https:") {
		return fmt.Errorf("%s: credentials are to be had at %q, want a URL with https", r.Base, p["realm"])
	}
	query := realm.Query()
	for _, k := range []string{"service", "scope"} {
		if p[k] != "" {
			query.Set(k, p[k])
		}
	}
	realm.RawQuery = query.Encode()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return err
	}
	if r.User != "" {
		q.SetBasicAuth(r.User, r.Password)
	}
	a, err := r.Client.Do(q)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	data, err := limited(a.Body, maxJSON)
	if err != nil {
		return err
	}
	var t struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if a.StatusCode != http.StatusOK {
		return &StatusError{URL: realm.Scheme + "://" + realm.Host + realm.Path, Status: a.Status, Text: registryError(data)}
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return fmt.Errorf("%s: %w", realm.Host, err)
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsAny(t.Token, "\r\n") {
		return errors.New(realm.Host + " gives no token")
	}
	r.authorization = "Bearer " + t.Token
	return nil
}

// parameters are those of a challenge (RFC 9110, 11.2): name="value", with commas.
func parameters(s string) map[string]string {
	out := map[string]string{}
	for s = strings.TrimLeft(s, " ,"); s != ""; s = strings.TrimLeft(s, " ,") {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			break
		}
		value := rest
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			value, s, _ = strings.Cut(quoted, `"`)
		} else {
			value, s, _ = strings.Cut(rest, ",")
		}
		out[strings.ToLower(strings.TrimSpace(key))] = value
	}
	return out
}

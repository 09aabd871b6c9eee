package extensions

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// parseReference parses HOST/NAME:TAG or HOST/NAME@sha256:…. Nothing may be
// left out: what an image is made of is to be seen in what made it, and a
// mistyped path is not to be asked of somebody's registry.
func parseReference(ref string, insecure []string) (name.Reference, error) {
	opts := []name.Option{name.StrictValidation}
	r, err := name.ParseReference(ref, opts...)
	if err != nil {
		return nil, err
	}
	if slices.Contains(insecure, r.Context().RegistryStr()) {
		return name.ParseReference(ref, append(opts, name.Insecure)...)
	}
	return r, nil
}

// isPath says whether ref can only be meant to be a path.
func isPath(ref string) bool {
	if filepath.IsAbs(ref) || strings.HasPrefix(ref, ".") || strings.HasPrefix(ref, "~") || !strings.Contains(ref, "/") {
		return true
	}
	_, err := name.ParseReference(ref, name.StrictValidation)
	return err != nil && !strings.ContainsAny(ref, ":@")
}

// pull returns the image for arch that ref names in a registry. A digest in the
// reference is compared with what came; all else is fetched by digest.
func pull(ctx context.Context, ref, arch string, insecure []string) (v1.Image, error) {
	if isPath(ref) {
		return nil, fmt.Errorf("%w; an image in a registry is HOST/NAME:TAG or HOST/NAME@sha256:…", fs.ErrNotExist)
	}
	r, err := parseReference(ref, insecure)
	if err != nil {
		return nil, fmt.Errorf("%w, nor is it a registry reference, HOST/NAME:TAG or HOST/NAME@sha256:…: %w", fs.ErrNotExist, err)
	}
	wire := newWire(insecure)
	desc, err := remote.Get(r, wire.options(ctx)...)
	if err != nil {
		return nil, wire.explain(r, err)
	}
	if desc.Size > maxJSON {
		return nil, fmt.Errorf("%w: a manifest of %d bytes, want at most %d", ErrHostile, desc.Size, maxJSON)
	}
	var img v1.Image
	switch {
	case desc.MediaType.IsIndex():
		index, err := desc.ImageIndex()
		if err != nil {
			return nil, wire.explain(r, err)
		}
		if img, err = pick(index, arch); err != nil {
			return nil, wire.explain(r, err)
		}
		return img, nil
	case desc.MediaType.IsImage():
		if img, err = desc.Image(); err != nil {
			return nil, wire.explain(r, err)
		}
		return img, nil
	}
	return nil, fmt.Errorf("%w: a manifest of type %s, want an OCI or docker image", ErrFormat, desc.MediaType)
}

// Push stores img as ref in a registry and returns its digest.
func Push(ctx context.Context, img v1.Image, ref string, insecure []string) (string, error) {
	r, err := parseReference(ref, insecure)
	if err != nil {
		return "", fmt.Errorf("push to %s: want HOST/NAME:TAG: %w", ref, err)
	}
	if _, ok := r.(name.Tag); !ok {
		return "", fmt.Errorf("push to %s: want HOST/NAME:TAG, not a digest", ref)
	}
	wire := newWire(insecure)
	if err := remote.Write(r, img, wire.options(ctx)...); err != nil {
		return "", fmt.Errorf("push to %s: %w", ref, wire.explain(r, err))
	}
	h, err := img.Digest()
	if err != nil {
		return "", err
	}
	return h.String(), nil
}

// wire is HTTP that is encrypted unless the user allows otherwise by name. The
// library on its own uses plain HTTP for hosts that look local.
type wire struct {
	insecure []string
	mu       sync.Mutex
	refused  string // the first host that was not asked
}

func newWire(insecure []string) *wire { return &wire{insecure: insecure} }

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !slices.Contains(w.insecure, req.URL.Host) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.refused == "" {
			w.refused = req.URL.Host
		}
		return nil, errPlain
	}
	return remote.DefaultTransport.RoundTrip(req)
}

var errPlain = errors.New("plain HTTP is not allowed")

func (w *wire) options(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(w), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithUserAgent("kiln"),
	}
}

// explain says what to do about an error of the registry r.
func (w *wire) explain(r name.Reference, err error) error {
	host := r.Context().RegistryStr()
	w.mu.Lock()
	refused := w.refused
	w.mu.Unlock()
	var answer *transport.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	case refused != "":
		return fmt.Errorf("%w: registry %s was not asked over plain HTTP; allow it with --insecure %s: %w", ErrHostile, refused, refused, err)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%w: registry %s speaks plain HTTP; allow it with --insecure %s", ErrHostile, host, host)
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w in the registry: %w", fs.ErrNotExist, err)
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		return fmt.Errorf("registry %s refuses: %w; log in with 'docker login %s', whose configuration is used", host, err, host)
	}
	return err
}

//go:build linux

package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/installer"
)

// pull unpacks an image of a registry, or of one of its mirrors.
func (n *Node) pull(ctx context.Context, reference string, send func(control.UpgradeProgress) error) (*installer.Image, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	c, _ := n.current()
	registries, err := registriesOf(c, ref.Context().RegistryStr())
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, r := range registries {
		n.forgetUpgrade()
		if err := os.MkdirAll(upgradeDir, 0o700); err != nil {
			return nil, err
		}
		checked := false
		var told time.Time
		img, err := installer.New(upgradeDir, runtime.GOARCH).Pull(ctx, r, ref, func(done, total int64) error {
			if !checked {
				checked = true
				if err := room(total); err != nil {
					return err
				}
			}
			if now := time.Now(); done == total || now.Sub(told) >= interval {
				told = now
				return send(control.UpgradeProgress{Step: "receive", Done: uint64(done), Total: uint64(total)})
			}
			return nil
		})
		if err == nil {
			return img, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, installer.ErrImage) {
			err = fmt.Errorf("%w: %w", control.ErrInvalid, err)
		}
		failed = append(failed, err)
	}
	return nil, fmt.Errorf("%s: %w", reference, errors.Join(failed...))
}

// registriesOf returns where to look for images of a host: its mirrors first. Only
// a mirror with a URL of that kind is asked without TLS.
func registriesOf(c *config.Config, host string) ([]*installer.Registry, error) {
	if c == nil {
		c = &config.Config{}
	}
	var list []*installer.Registry
	add := func(base, host string) error {
		r := &installer.Registry{Base: base}
		doc := registryOf(c, host, false)
		if doc != nil && doc.Auth != nil {
			r.User, r.Password = doc.Auth.Username, doc.Auth.Password.Reveal()
		}
		var err error
		r.Client, err = registryClient(c, doc)
		list = append(list, r)
		return err
	}
	doc := registryOf(c, host, true)
	if doc != nil {
		for _, m := range doc.Mirrors {
			u, err := url.Parse(m.URL)
			if err != nil {
				return nil, err
			}
			base := strings.TrimSuffix(m.URL, "/")
			if !m.OverridePath {
				base += "/v2"
			}
			if err := add(base, u.Host); err != nil {
				return nil, err
			}
		}
	}
	if doc != nil && doc.NoFallback {
		return list, nil
	}
	return list, add("https://"+host+"/v2", host)
}

// registryOf returns the document of a host or, if any will do, that of all hosts.
func registryOf(c *config.Config, host string, any bool) *config.Registry {
	for _, want := range []string{host, "*"} {
		if i := slices.IndexFunc(c.Registries, func(r config.Registry) bool { return r.Name == want }); i >= 0 && (want == host || any) {
			return &c.Registries[i]
		}
	}
	return nil
}

// registryClient returns a client that trusts whom the configuration does.
func registryClient(c *config.Config, doc *config.Registry) (*http.Client, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	texts := []string{}
	for _, t := range c.TrustedRoots {
		texts = append(texts, t.Certificates)
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if doc != nil {
		settings.InsecureSkipVerify = doc.InsecureSkipVerify
		if doc.CA != "" {
			texts = append(texts, doc.CA)
		}
	}
	for _, text := range texts {
		certs, err := config.Certificates(text)
		if err != nil {
			return nil, err
		}
		for _, c := range certs {
			roots.AddCert(c)
		}
	}
	const patience = 30 * time.Second
	return &http.Client{
		Transport: &http.Transport{
			DialContext:     (&net.Dialer{Timeout: patience}).DialContext,
			TLSClientConfig: settings, TLSHandshakeTimeout: patience, ResponseHeaderTimeout: patience,
			DisableKeepAlives: true, DisableCompression: true,
		},
		CheckRedirect: func(next *http.Request, before []*http.Request) error {
			if before[0].URL.Scheme == "https" && next.URL.Scheme != "https" || len(before) > 5 {
				return fmt.Errorf("redirected to %s, which is not followed", next.URL.Redacted())
			}
			return nil
		},
	}, nil
}

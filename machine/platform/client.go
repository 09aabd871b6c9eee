package platform

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// How long parts of a request may take.
const (
	dialTimeout   = 5 * time.Second
	headerTimeout = 15 * time.Second
)

// maxRedirects is how many redirections are followed.
const maxRedirects = 5

// A Dialer opens connections, as net.Dialer does.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// NewClient returns a client that trusts roots (nil: those of the system) and is
// right about certificates when the clock is not.
//
// earliest is a time that is certainly past: when the image was built. A clock that
// shows less is wrong; then all that is known is that it is later than earliest.
// Certificates that had expired by then are refused, and "not valid yet" cannot be
// told, so that a certificate is taken as valid which begins later. What cannot be
// noticed without a clock is that one has expired since. All else, names and
// signatures, is checked as always. A node whose configuration has secrets that
// must not outlive a certificate's key sets the time first, by NTP.
//
// There are no proxies, no cookies, and no connections that are kept.
func NewClient(d Dialer, roots *x509.CertPool, earliest time.Time) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				// Soon enough to try another address.
				ctx, cancel := context.WithTimeout(ctx, dialTimeout)
				defer cancel()
				return d.DialContext(ctx, network, address)
			},
			TLSClientConfig:        tlsConfig(roots, earliest),
			TLSHandshakeTimeout:    headerTimeout,
			ResponseHeaderTimeout:  headerTimeout,
			MaxResponseHeaderBytes: 64 << 10,
			DisableKeepAlives:      true,
			DisableCompression:     true,
		},
		CheckRedirect: checkRedirect,
	}
}

// checkRedirect refuses what would give away a request's secrets: from https to
// http, and of a request with headers of its own, to any place.
func checkRedirect(next *http.Request, before []*http.Request) error {
	first := before[0]
	switch {
	case len(before) > maxRedirects:
		return &redirectError{fmt.Sprintf("more than %d redirections", maxRedirects)}
	case first.URL.Scheme == "https" && next.URL.Scheme != "https":
		return &redirectError{"redirected from https to " + redact(next.URL)}
	case len(first.Header) > 0:
		return &redirectError{"redirected to " + redact(next.URL) + ", which a metadata service does not do"}
	}
	return nil
}

type redirectError struct{ text string }

func (e *redirectError) Error() string { return e.text }

// tlsConfig returns a configuration that verifies certificates itself: crypto/tls
// lets one set the time, but not depending on the certificate.
func tlsConfig(roots *x509.CertPool, earliest time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the server has no certificate")
			}
			now := time.Now()
			if now.Before(earliest) {
				now = earliest
				for _, c := range s.PeerCertificates {
					if c.NotBefore.After(now) {
						now = c.NotBefore
					}
				}
			}
			opts := x509.VerifyOptions{
				Roots: roots, DNSName: s.ServerName, CurrentTime: now, Intermediates: x509.NewCertPool(),
			}
			for _, c := range s.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(opts)
			if err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
			}
			return nil
		},
	}
}

// LowPort is a net.Dialer that dials from a port below 1024, as a program of root
// can.
type LowPort struct{}

// DialContext tries the ports downwards until one is free.
func (LowPort) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	const highest, lowest = 1023, 512
	for p := highest; p >= lowest; p-- {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: p}}
		conn, err = d.DialContext(ctx, network, address)
		if err == nil || !portTaken(err) {
			return conn, err
		}
	}
	return nil, err
}

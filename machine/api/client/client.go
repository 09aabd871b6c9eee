// Package client connects to the machine API of nodes.
package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/kilnhq/kiln/machine/api/selfsigned"
	"github.com/kilnhq/kiln/machine/config"
)

// port is that of the API.
const port = "50000"

// maxReceive is the largest answer that is taken, in bytes.
const maxReceive = 16 << 20

// A Target is a node and how to reach it.
type Target struct {
	Node     string          // name or address that its certificate is for, with or without port
	Endpoint string          // where to connect to instead, with or without port
	Context  *config.Context // who asks, and the CA of the node; nil in maintenance mode

	// Fingerprint is of the certificate of a node in maintenance mode. If it is
	// nil there, the connection fails with an *UnknownError.
	Fingerprint *selfsigned.Fingerprint
}

// UnknownError says which certificate a node showed that nobody vouches for.
type UnknownError struct {
	Found selfsigned.Fingerprint
	Want  *selfsigned.Fingerprint // nil if none was given
}

func (e *UnknownError) Error() string {
	if e.Want == nil {
		return fmt.Sprintf("its certificate has the fingerprint %v; compare it with the node's console and give it with --fingerprint", e.Found)
	}
	return fmt.Sprintf("its certificate has the fingerprint %v, want %v: this is another node, somebody is in between, or the node started anew", e.Found, *e.Want)
}

// Dial returns a connection to a node, which is made with the first call.
func Dial(t Target) (*grpc.ClientConn, error) {
	host, _ := split(t.Node)
	address := t.Node
	if t.Endpoint != "" {
		address = t.Endpoint
	}
	h, p := split(address)
	config, err := t.tls(host)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Node, err)
	}
	return grpc.NewClient("passthrough:///"+net.JoinHostPort(h, p),
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceive)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	)
}

// split splits a node into host and port.
func split(node string) (host, p string) {
	if h, p, err := net.SplitHostPort(node); err == nil {
		if _, err := strconv.ParseUint(p, 10, 16); err == nil {
			return h, p
		}
	}
	return strings.Trim(node, "[]"), port
}

func (t Target) tls(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host}
	if t.Context == nil {
		// Checked by its fingerprint instead.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(s tls.ConnectionState) error {
			found := selfsigned.Of(s.PeerCertificates[0].Raw)
			if t.Fingerprint == nil || found != *t.Fingerprint {
				return &UnknownError{found, t.Fingerprint}
			}
			return nil
		}
		return c, nil
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM([]byte(t.Context.CA)) {
		return nil, errors.New("the context has no CA certificate in PEM")
	}
	own, err := tls.X509KeyPair([]byte(t.Context.Identity.Certificate), []byte(t.Context.Identity.Key.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("the client's certificate: %w", err)
	}
	c.Certificates = []tls.Certificate{own}
	// Shown whatever CA the node asks for, so that the node can say what is wrong.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	return c, nil
}

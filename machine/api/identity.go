//go:build linux

package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/kilnhq/kiln/machine/control"
)

// An identity is what the server identifies itself with, and whom it knows.
type identity struct {
	maintenance bool
	clients     *x509.CertPool // CAs of the clients
	config      *tls.Config
}

func newIdentity(from control.Identity, now func() time.Time) (*identity, error) {
	pair, err := tls.X509KeyPair(from.Certificate, from.Key)
	if err != nil {
		return nil, fmt.Errorf("the node's certificate: %w", err)
	}
	id := &identity{maintenance: from.Maintenance, config: &tls.Config{
		Certificates:           []tls.Certificate{pair},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true, // every connection shows its certificate
		Time:                   now,
	}}
	if id.maintenance {
		return id, nil
	}
	id.clients = x509.NewCertPool()
	if !id.clients.AppendCertsFromPEM(from.CA) {
		return nil, errors.New("the clients' CA: no certificate in PEM")
	}
	id.config.ClientCAs = id.clients
	id.config.ClientAuth = tls.RequireAndVerifyClientCert
	return id, nil
}

// transport is the credentials of the server: TLS with the identity of the
// moment.
type transport struct {
	credentials.TransportCredentials
	server *Server
}

func newTransport(s *Server) credentials.TransportCredentials {
	return transport{credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := s.identity.Load()
			if id == nil {
				return nil, errors.New("the node has no identity yet")
			}
			return id.config, nil
		},
	}), s}
}

func (t transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	h := &held{Conn: conn}
	c, info, err := t.TransportCredentials.ServerHandshake(h)
	h.done.Store(true)
	if err != nil {
		defer conn.Close()
		t.server.log.Warn("a connection was refused", "client", conn.RemoteAddr().String(), "error", err)
		linger(conn)
	}
	return c, info, err
}

func (t transport) Clone() credentials.TransportCredentials {
	return transport{t.TransportCredentials.Clone(), t.server}
}

// held is a connection that a handshake does not close.
type held struct {
	net.Conn
	done atomic.Bool // the handshake
}

func (h *held) Close() error {
	if !h.done.Load() {
		return nil
	}
	return h.Conn.Close()
}

// lingering is how long a client that was refused gets to read why.
const lingering = time.Second

// linger waits until the client has read the alert. A client of TLS 1.3 goes on
// writing before it knows what the server thinks of it; a connection that is
// closed with that unread is reset, and the alert lost.
func linger(conn net.Conn) {
	c, ok := conn.(interface{ CloseWrite() error })
	if !ok || c.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(lingering)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, 64<<10)
}

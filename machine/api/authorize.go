//go:build linux

package api

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/kilnhq/kiln/machine/api/role"
	"github.com/kilnhq/kiln/machine/control"
)

type roleKey struct{}

// roleOf returns the role of the caller; None in maintenance mode.
func roleOf(ctx context.Context) role.Role {
	r, _ := ctx.Value(roleKey{}).(role.Role)
	return r
}

// authorize returns a context with the caller's role and name if the caller may
// call method. The certificate is verified for every call: it may have ended, or
// the CA been replaced, since the connection was made.
func (s *Server) authorize(ctx context.Context, method string) (context.Context, error) {
	address := "unknown"
	p, ok := peer.FromContext(ctx)
	if ok && p.Addr != nil {
		address = p.Addr.String()
	}
	name, r, err := s.permitted(p, method)
	if err != nil {
		s.log.Warn("a call was refused", "method", method, "client", address, "name", name, "error", err)
		return nil, err
	}
	ctx = context.WithValue(ctx, roleKey{}, r)
	return control.WithCaller(ctx, fmt.Sprintf("%s (%v) at %s", name, r, address)), nil
}

func (s *Server) permitted(p *peer.Peer, method string) (name string, r role.Role, err error) {
	rule, ok := s.rules[method]
	if !ok {
		return "", role.None, status.Errorf(codes.PermissionDenied, "no role may call %s", method)
	}
	id := s.identity.Load()
	if id == nil {
		return "", role.None, status.Error(codes.Unavailable, "the node has no identity yet")
	}
	if id.maintenance {
		if !rule.maintenance {
			return "", role.None, status.Errorf(codes.FailedPrecondition,
				"the node has no configuration yet; until 'kiln node config apply' gives it one only version and disks can be asked for")
		}
		return "nobody", role.None, nil
	}
	c, err := s.verified(id, p)
	if err != nil {
		return "", role.None, status.Error(codes.Unauthenticated, err.Error())
	}
	name = c.Subject.CommonName
	if r, err = role.Of(c); err != nil {
		return name, role.None, status.Error(codes.PermissionDenied, err.Error())
	}
	if r < rule.least {
		return name, r, status.Errorf(codes.PermissionDenied, "the certificate of %q has the role %v, want %v", name, r, rule.least)
	}
	return name, r, nil
}

// verified returns the client's certificate.
func (s *Server) verified(id *identity, p *peer.Peer) (*x509.Certificate, error) {
	if p == nil {
		return nil, errors.New("no client certificate")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, errors.New("no client certificate")
	}
	chain := info.State.PeerCertificates
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: id.clients, Intermediates: intermediates, CurrentTime: s.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	// A certificate that says nothing about its use could be used for anything.
	if !slices.Contains(chain[0].ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return nil, errors.New("client certificate: not one for clients")
	}
	return chain[0], nil
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	if ctx, err = s.authorize(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	defer s.recover(info.FullMethod, &err)
	return next(ctx, req)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	ctx, err := s.authorize(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	defer s.recover(info.FullMethod, &err)
	return next(srv, authorized{ss, ctx})
}

// recover turns the panic of a verb into an error.
func (s *Server) recover(method string, err *error) {
	if p := recover(); p != nil {
		s.log.Error("a verb panicked", "method", method, "panic", p)
		*err = status.Error(codes.Internal, "the node's API failed; its log says why")
	}
}

// authorized is a stream with the context of authorize.
type authorized struct {
	grpc.ServerStream
	ctx context.Context
}

func (a authorized) Context() context.Context { return a.ctx }

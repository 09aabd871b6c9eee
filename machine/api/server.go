//go:build linux

// Package api is the machine API of a node: the server that machine/apid runs.
//
// The API itself is described in api/v1alpha1. The server speaks gRPC over TLS 1.3
// with clients whose certificates the node's CA has issued; the role in a
// certificate (machine/api/role) decides which verbs its holder may call, by one
// table that refuses what is not in it. It runs without any privilege: what every
// user of the node can see it reads itself (machine/nodeinfo), for the rest it
// asks PID 1 (machine/control).
//
// A node without configuration has no CA. It is in maintenance mode then, with a
// certificate that it issued itself, whose fingerprint is on the console: anybody
// may ask for version and disks and give it a configuration, and nothing else.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/files"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/nodeinfo"
)

// Port is the TCP port of the API.
const Port = 50000

// Limits of a connection.
const (
	maxReceive = control.MaxConfig + 64<<10 // bytes of a message
	maxSend    = 16 << 20
	maxStreams = 64 // calls at a time
	handshake  = 10 * time.Second
	shutdown   = 5 * time.Second // for the calls under way
)

// Options is what a server works with.
type Options struct {
	Node   control.Node     // what takes privilege
	System nodeinfo.System  // what does not
	Disks  blockdev.Host    // block devices
	Files  *files.Tree      // files that every user may read
	Log    *slog.Logger     // who was refused, and what went wrong
	Now    func() time.Time // that certificates are compared with

	// In tests, between authorisation and verbs.
	unary  grpc.UnaryServerInterceptor
	stream grpc.StreamServerInterceptor
}

// Server is the API server. It refuses everybody until it has an identity.
type Server struct {
	verbs
	log      *slog.Logger
	now      func() time.Time
	rules    map[string]rule
	identity atomic.Pointer[identity]
	first    sync.Once     // closes known
	known    chan struct{} // see Identified
	grpc     *grpc.Server
}

// New returns a server.
func New(o Options) *Server {
	s := &Server{verbs: verbs{node: o.Node, system: o.System, disks: o.Disks, files: o.Files}, log: o.Log, now: o.Now, rules: rules(), known: make(chan struct{})}
	unary, stream := []grpc.UnaryServerInterceptor{s.unary}, []grpc.StreamServerInterceptor{s.stream}
	if o.unary != nil {
		unary, stream = append(unary, o.unary), append(stream, o.stream)
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(newTransport(s)),
		grpc.ChainUnaryInterceptor(unary...),
		grpc.ChainStreamInterceptor(stream...),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxSendMsgSize(maxSend),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(handshake),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 15 * time.Minute, Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	v1alpha1.RegisterNodeServer(s.grpc, s)
	return s
}

// SetIdentity replaces what the server identifies itself with.
func (s *Server) SetIdentity(from control.Identity) error {
	id, err := newIdentity(from, s.now)
	if err != nil {
		return err
	}
	s.identity.Store(id)
	s.first.Do(func() { close(s.known) })
	return nil
}

// Identified returns a channel that is closed when the server has an identity. To
// listen before is to refuse those who come.
func (s *Server) Identified() <-chan struct{} { return s.known }

// Follow keeps the identity as the Node says it is. If the Node cannot say, the
// server keeps the one it has and asks again.
func (s *Server) Follow(ctx context.Context) error {
	const again = time.Second
	for {
		err := s.node.Identities(ctx, func(id control.Identity) error {
			if err := s.SetIdentity(id); err != nil {
				s.log.Error("the identity is not one", "error", err)
				return nil
			}
			s.log.Info("the API has an identity", "maintenance", id.Maintenance)
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, control.ErrUnimplemented) {
			return err
		}
		s.log.Warn("the identity is not known", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again):
		}
	}
}

// Serve answers calls until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		t := time.AfterFunc(shutdown, s.grpc.Stop)
		defer t.Stop()
		s.grpc.GracefulStop()
	})
	err := s.grpc.Serve(limit(l, maxConns, maxConnsAddress))
	if !stop() {
		<-stopped
		return nil
	}
	return err
}

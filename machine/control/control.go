//go:build linux

// Package control is how programs without privilege ask PID 1 of a node for
// what takes privilege: a fixed list of verbs over a unix socket.
//
// Only processes of the users that a Server names may ask; the kernel says who is
// at the other end (SO_PEERCRED, unix(7)). Every connection carries one call, in
// frames:
//
//	offset  size
//	0       1     kind
//	1       4     length of the payload in bytes, big-endian, at most MaxFrame
//	5             payload
//
//	kind  from    payload
//	Q     client  JSON {"verb", "caller", "args"}: the first frame, and only that
//	D     client  bytes that belong to the request: an upgrade's image
//	F     client  nothing: there are no more bytes
//	M     server  JSON: an answer; some verbs have many
//	E     server  JSON {"code", "message"}: the call failed
//	Z     server  nothing: the call is done
//
// Who closes the connection before E or Z ends the call. Answers are JSON, so that
// PID 1 needs no more than it has; their names are those of the protobuf messages
// in api/v1alpha1, which machine/api turns them into.
package control

import (
	"context"
	"io"

	"github.com/kilnhq/kiln/kernel/hardening"
)

// Socket is where PID 1 listens.
const Socket = "/run/kiln/control.sock"

// MaxConfig is the largest machine configuration, in bytes.
const MaxConfig = 1 << 20

// Node is what can be asked. PID 1 implements it, embedding Unimplemented; Client
// implements it by asking. Answers of a verb that follows something come until the
// context ends or send fails. Errors keep their meaning over the socket if they
// wrap one of this package or fs.ErrNotExist, fs.ErrExist or fs.ErrPermission.
type Node interface {
	// Identities sends what the API identifies itself with, and again when that
	// changes, for ever.
	Identities(ctx context.Context, send func(Identity) error) error

	Version(context.Context) (Version, error)
	Health(context.Context) (Health, error)

	Services(context.Context) (ServiceList, error)
	ControlService(context.Context, ServiceControl) (ServiceResult, error)
	Logs(ctx context.Context, r LogsRequest, send func(LogLine) error) error
	Dmesg(ctx context.Context, r TailRequest, send func(DmesgLine) error) error
	Events(ctx context.Context, r TailRequest, send func(Event) error) error

	Containers(context.Context, NamespaceRequest) (ContainerList, error)
	Images(context.Context, NamespaceRequest) (ImageList, error)
	Modules(context.Context) (ModuleList, error)
	Extensions(context.Context) (ExtensionList, error)
	Hardening(context.Context) (hardening.Report, error)

	Config(context.Context, ConfigRequest) (Config, error)
	ApplyConfig(context.Context, ConfigChange) (ConfigResult, error)
	// Meta returns all values; the Server leaves out what is secret.
	Meta(context.Context, MetaRequest) (MetaList, error)
	SetMeta(context.Context, MetaList) error
	DeleteMeta(context.Context, MetaKeys) (MetaDeleted, error)
	Kubeconfig(context.Context) (Kubeconfig, error)

	// Upgrade reads the image if the request names no reference. It returns an
	// error if that ends early.
	Upgrade(ctx context.Context, r UpgradeRequest, image io.Reader, send func(UpgradeProgress) error) error
	Rollback(context.Context, RollbackRequest) (RollbackResult, error)
	// Reset and Power return when the request is accepted.
	Reset(context.Context, ResetRequest) error
	Power(context.Context, PowerRequest) error

	// ReadFile and ListDirectory are for administrators: they see everything that
	// the implementation does not hide.
	ReadFile(ctx context.Context, r ReadRequest, send func(FileChunk) error) error
	ListDirectory(ctx context.Context, r ListRequest, send func(FileInfo) error) error
}

type callerKey struct{}

// WithCaller returns a context that says who asks, for people.
func WithCaller(ctx context.Context, caller string) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

// Caller returns who asks; "" if that is not known.
func Caller(ctx context.Context) string {
	s, _ := ctx.Value(callerKey{}).(string)
	return s
}

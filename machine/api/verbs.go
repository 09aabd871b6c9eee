//go:build linux

package api

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/files"
	"github.com/kilnhq/kiln/machine/api/role"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/nodeinfo"
)

// verbs carries out what authorize let through.
type verbs struct {
	v1alpha1.UnimplementedNodeServer
	node   control.Node
	system nodeinfo.System
	disks  blockdev.Host
	files  *files.Tree
}

func (v *verbs) Version(ctx context.Context, _ *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return answer[v1alpha1.VersionResponse](v.node.Version(ctx))
}

func (v *verbs) Health(ctx context.Context, _ *v1alpha1.HealthRequest) (*v1alpha1.HealthResponse, error) {
	return answer[v1alpha1.HealthResponse](v.node.Health(ctx))
}

func (v *verbs) Services(ctx context.Context, _ *v1alpha1.ServicesRequest) (*v1alpha1.ServicesResponse, error) {
	return answer[v1alpha1.ServicesResponse](v.node.Services(ctx))
}

func (v *verbs) ServiceControl(ctx context.Context, r *v1alpha1.ServiceControlRequest) (*v1alpha1.ServiceControlResponse, error) {
	c := control.ServiceControl{Name: r.GetName()}
	switch r.GetAction() {
	case v1alpha1.ServiceControlRequest_START:
		c.Action = control.Start
	case v1alpha1.ServiceControlRequest_STOP:
		c.Action = control.Stop
	case v1alpha1.ServiceControlRequest_RESTART:
		c.Action = control.Restart
	default:
		return nil, status.Errorf(codes.InvalidArgument, "action %v, want START, STOP or RESTART", r.GetAction())
	}
	return answer[v1alpha1.ServiceControlResponse](v.node.ControlService(ctx, c))
}

func (v *verbs) Logs(r *v1alpha1.LogsRequest, s grpc.ServerStreamingServer[v1alpha1.LogLine]) error {
	q := control.LogsRequest{Service: r.GetService(), TailRequest: control.TailRequest{Tail: int(r.GetTail()), Follow: r.GetFollow()}}
	return failure(v.node.Logs(s.Context(), q, each[control.LogLine](s.Send)))
}

func (v *verbs) Dmesg(r *v1alpha1.DmesgRequest, s grpc.ServerStreamingServer[v1alpha1.DmesgLine]) error {
	q := control.TailRequest{Tail: int(r.GetTail()), Follow: r.GetFollow()}
	return failure(v.node.Dmesg(s.Context(), q, each[control.DmesgLine](s.Send)))
}

func (v *verbs) Events(r *v1alpha1.EventsRequest, s grpc.ServerStreamingServer[v1alpha1.Event]) error {
	q := control.TailRequest{Tail: int(r.GetTail()), Follow: r.GetFollow()}
	return failure(v.node.Events(s.Context(), q, each[control.Event](s.Send)))
}

// defaultNamespace is containerd's for what the node itself runs.
const defaultNamespace = "system"

func namespace(s string) control.NamespaceRequest {
	if s == "" {
		s = defaultNamespace
	}
	return control.NamespaceRequest{Namespace: s}
}

func (v *verbs) Containers(ctx context.Context, r *v1alpha1.ContainersRequest) (*v1alpha1.ContainersResponse, error) {
	return answer[v1alpha1.ContainersResponse](v.node.Containers(ctx, namespace(r.GetNamespace())))
}

func (v *verbs) Images(ctx context.Context, r *v1alpha1.ImagesRequest) (*v1alpha1.ImagesResponse, error) {
	return answer[v1alpha1.ImagesResponse](v.node.Images(ctx, namespace(r.GetNamespace())))
}

func (v *verbs) Modules(ctx context.Context, _ *v1alpha1.ModulesRequest) (*v1alpha1.ModulesResponse, error) {
	return answer[v1alpha1.ModulesResponse](v.node.Modules(ctx))
}

func (v *verbs) Extensions(ctx context.Context, _ *v1alpha1.ExtensionsRequest) (*v1alpha1.ExtensionsResponse, error) {
	return answer[v1alpha1.ExtensionsResponse](v.node.Extensions(ctx))
}

func (v *verbs) Hardening(ctx context.Context, _ *v1alpha1.HardeningRequest) (*v1alpha1.HardeningResponse, error) {
	return answer[v1alpha1.HardeningResponse](v.node.Hardening(ctx))
}

func (v *verbs) ReadFile(r *v1alpha1.ReadFileRequest, s grpc.ServerStreamingServer[v1alpha1.FileChunk]) error {
	q := control.ReadRequest{Path: r.GetPath(), Offset: r.GetOffset(), Limit: r.GetLimit()}
	send := func(c control.FileChunk) error { return s.Send(&v1alpha1.FileChunk{Data: c.Data}) }
	if roleOf(s.Context()) == role.Admin {
		return failure(v.node.ReadFile(s.Context(), q, send))
	}
	return failure(forAdmins(v.files.ReadFile(s.Context(), q, send)))
}

func (v *verbs) ListDirectory(r *v1alpha1.ListDirectoryRequest, s grpc.ServerStreamingServer[v1alpha1.FileInfo]) error {
	q := control.ListRequest{Path: r.GetPath(), Recursive: r.GetRecursive()}
	send := each[control.FileInfo](s.Send)
	if roleOf(s.Context()) == role.Admin {
		return failure(v.node.ListDirectory(s.Context(), q, send))
	}
	return failure(forAdmins(v.files.ListDirectory(s.Context(), q, send)))
}

// forAdmins says who may see what every user may not.
func forAdmins(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return status.Errorf(codes.PermissionDenied, "%v; what is closed to other users takes the role %v", err, role.Admin)
	}
	return err
}

func (v *verbs) ConfigGet(ctx context.Context, _ *v1alpha1.ConfigGetRequest) (*v1alpha1.ConfigGetResponse, error) {
	return answer[v1alpha1.ConfigGetResponse](v.node.Config(ctx, control.ConfigRequest{Secrets: roleOf(ctx) == role.Admin}))
}

func (v *verbs) ConfigApply(ctx context.Context, r *v1alpha1.ConfigApplyRequest) (*v1alpha1.ConfigApplyResponse, error) {
	if n := len(r.GetConfig()); n == 0 || n > control.MaxConfig {
		return nil, status.Errorf(codes.InvalidArgument, "configuration of %d bytes, want 1 to %d", n, control.MaxConfig)
	}
	return answer[v1alpha1.ConfigApplyResponse](v.node.ApplyConfig(ctx, control.ConfigChange{Config: r.GetConfig(), DryRun: r.GetDryRun()}))
}

func (v *verbs) MetaList(ctx context.Context, _ *v1alpha1.MetaListRequest) (*v1alpha1.MetaListResponse, error) {
	return answer[v1alpha1.MetaListResponse](v.node.Meta(ctx, control.MetaRequest{Secrets: roleOf(ctx) == role.Admin}))
}

func (v *verbs) MetaSet(ctx context.Context, r *v1alpha1.MetaSetRequest) (*v1alpha1.MetaSetResponse, error) {
	var l control.MetaList
	for _, m := range r.GetValues() {
		if err := validKey(m.GetKey()); err != nil {
			return nil, err
		}
		l.Values = append(l.Values, control.MetaValue{Key: m.GetKey(), Value: m.GetValue()})
	}
	if err := v.node.SetMeta(ctx, l); err != nil {
		return nil, failure(err)
	}
	return &v1alpha1.MetaSetResponse{}, nil
}

func (v *verbs) MetaDelete(ctx context.Context, r *v1alpha1.MetaDeleteRequest) (*v1alpha1.MetaDeleteResponse, error) {
	for _, k := range r.GetKeys() {
		if err := validKey(k); err != nil {
			return nil, err
		}
	}
	return answer[v1alpha1.MetaDeleteResponse](v.node.DeleteMeta(ctx, control.MetaKeys{Keys: r.GetKeys()}))
}

func validKey(k uint32) error {
	if k < 1 || k > 255 {
		return status.Errorf(codes.InvalidArgument, "META key %d, want 1 to 255", k)
	}
	return nil
}

func (v *verbs) Kubeconfig(ctx context.Context, _ *v1alpha1.KubeconfigRequest) (*v1alpha1.KubeconfigResponse, error) {
	return answer[v1alpha1.KubeconfigResponse](v.node.Kubeconfig(ctx))
}

func (v *verbs) Upgrade(s grpc.BidiStreamingServer[v1alpha1.UpgradeRequest, v1alpha1.UpgradeProgress]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	o := first.GetOptions()
	if o == nil {
		return status.Error(codes.InvalidArgument, "the first message of an upgrade holds no options")
	}
	if (o.GetReference() == "") == (o.GetSize() == 0) {
		return status.Error(codes.InvalidArgument, "an upgrade takes either a reference or the size of the data that follows")
	}
	q := control.UpgradeRequest{Reference: o.GetReference(), Size: o.GetSize(), SHA256: o.GetSha256(), Reboot: o.GetReboot()}
	return failure(v.node.Upgrade(s.Context(), q, &upload{recv: s.Recv, left: o.GetSize()}, each[control.UpgradeProgress](s.Send)))
}

// upload reads the data of an upgrade.
type upload struct {
	recv func() (*v1alpha1.UpgradeRequest, error)
	left uint64
	data []byte
}

func (u *upload) Read(p []byte) (int, error) {
	for len(u.data) == 0 {
		m, err := u.recv()
		if errors.Is(err, io.EOF) && u.left > 0 {
			return 0, status.Errorf(codes.DataLoss, "the image ends %d bytes early", u.left)
		}
		if err != nil {
			return 0, err
		}
		if m.GetOptions() != nil {
			return 0, status.Error(codes.InvalidArgument, "options again, want the image")
		}
		u.data = m.GetData()
		if uint64(len(u.data)) > u.left {
			return 0, status.Error(codes.InvalidArgument, "the image has more bytes than its size says")
		}
		u.left -= uint64(len(u.data))
	}
	n := copy(p, u.data)
	u.data = u.data[n:]
	return n, nil
}

func (v *verbs) Rollback(ctx context.Context, r *v1alpha1.RollbackRequest) (*v1alpha1.RollbackResponse, error) {
	return answer[v1alpha1.RollbackResponse](v.node.Rollback(ctx, control.RollbackRequest{Reboot: r.GetReboot()}))
}

func (v *verbs) Reset(ctx context.Context, r *v1alpha1.ResetRequest) (*v1alpha1.ResetResponse, error) {
	if !r.GetState() && !r.GetEphemeral() {
		return nil, status.Error(codes.InvalidArgument, "a reset of nothing, want state, ephemeral or both")
	}
	if err := v.node.Reset(ctx, control.ResetRequest{State: r.GetState(), Ephemeral: r.GetEphemeral(), Shutdown: r.GetShutdown()}); err != nil {
		return nil, failure(err)
	}
	return &v1alpha1.ResetResponse{}, nil
}

func (v *verbs) Reboot(ctx context.Context, _ *v1alpha1.RebootRequest) (*v1alpha1.RebootResponse, error) {
	if err := v.node.Power(ctx, control.PowerRequest{Action: control.Reboot}); err != nil {
		return nil, failure(err)
	}
	return &v1alpha1.RebootResponse{}, nil
}

func (v *verbs) Shutdown(ctx context.Context, _ *v1alpha1.ShutdownRequest) (*v1alpha1.ShutdownResponse, error) {
	if err := v.node.Power(ctx, control.PowerRequest{Action: control.PowerOff}); err != nil {
		return nil, failure(err)
	}
	return &v1alpha1.ShutdownResponse{}, nil
}

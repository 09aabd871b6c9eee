//go:build linux

package control

import (
	"context"
	"io"

	"github.com/kilnhq/kiln/kernel/hardening"
)

func (c *Client) Identities(ctx context.Context, send func(Identity) error) error {
	return all(ctx, c, "identities", nothing{}, nil, send)
}

func (c *Client) Version(ctx context.Context) (Version, error) {
	return one[Version](ctx, c, "version", nothing{})
}

func (c *Client) Health(ctx context.Context) (Health, error) {
	return one[Health](ctx, c, "health", nothing{})
}

func (c *Client) Services(ctx context.Context) (ServiceList, error) {
	return one[ServiceList](ctx, c, "services", nothing{})
}

func (c *Client) ControlService(ctx context.Context, r ServiceControl) (ServiceResult, error) {
	return one[ServiceResult](ctx, c, "control-service", r)
}

func (c *Client) Logs(ctx context.Context, r LogsRequest, send func(LogLine) error) error {
	return all(ctx, c, "logs", r, nil, send)
}

func (c *Client) Dmesg(ctx context.Context, r TailRequest, send func(DmesgLine) error) error {
	return all(ctx, c, "dmesg", r, nil, send)
}

func (c *Client) Events(ctx context.Context, r TailRequest, send func(Event) error) error {
	return all(ctx, c, "events", r, nil, send)
}

func (c *Client) Containers(ctx context.Context, r NamespaceRequest) (ContainerList, error) {
	return one[ContainerList](ctx, c, "containers", r)
}

func (c *Client) Images(ctx context.Context, r NamespaceRequest) (ImageList, error) {
	return one[ImageList](ctx, c, "images", r)
}

func (c *Client) Modules(ctx context.Context) (ModuleList, error) {
	return one[ModuleList](ctx, c, "modules", nothing{})
}

func (c *Client) Extensions(ctx context.Context) (ExtensionList, error) {
	return one[ExtensionList](ctx, c, "extensions", nothing{})
}

func (c *Client) Hardening(ctx context.Context) (hardening.Report, error) {
	return one[hardening.Report](ctx, c, "hardening", nothing{})
}

func (c *Client) Config(ctx context.Context, r ConfigRequest) (Config, error) {
	return one[Config](ctx, c, "config", r)
}

func (c *Client) ApplyConfig(ctx context.Context, r ConfigChange) (ConfigResult, error) {
	return one[ConfigResult](ctx, c, "apply-config", r)
}

func (c *Client) Meta(ctx context.Context, r MetaRequest) (MetaList, error) {
	return one[MetaList](ctx, c, "meta", r)
}

func (c *Client) SetMeta(ctx context.Context, r MetaList) error {
	return c.none(ctx, "set-meta", r)
}

func (c *Client) DeleteMeta(ctx context.Context, r MetaKeys) (MetaDeleted, error) {
	return one[MetaDeleted](ctx, c, "delete-meta", r)
}

func (c *Client) Kubeconfig(ctx context.Context) (Kubeconfig, error) {
	return one[Kubeconfig](ctx, c, "kubeconfig", nothing{})
}

func (c *Client) Upgrade(ctx context.Context, r UpgradeRequest, image io.Reader, send func(UpgradeProgress) error) error {
	return all(ctx, c, "upgrade", r, image, send)
}

func (c *Client) Rollback(ctx context.Context, r RollbackRequest) (RollbackResult, error) {
	return one[RollbackResult](ctx, c, "rollback", r)
}

func (c *Client) Reset(ctx context.Context, r ResetRequest) error {
	return c.none(ctx, "reset", r)
}

func (c *Client) Power(ctx context.Context, r PowerRequest) error {
	return c.none(ctx, "power", r)
}

func (c *Client) ReadFile(ctx context.Context, r ReadRequest, send func(FileChunk) error) error {
	return all(ctx, c, "read-file", r, nil, send)
}

func (c *Client) ListDirectory(ctx context.Context, r ListRequest, send func(FileInfo) error) error {
	return all(ctx, c, "list-directory", r, nil, send)
}

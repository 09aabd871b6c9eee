package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/kernel/hardening"
)

// newQuery returns a command that asks one thing.
func newQuery[M proto.Message](n *nodeFlags, use, short string, ask func(context.Context, v1alpha1.NodeClient) (M, error), v view[M]) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: "  kiln node " + use, Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return query(c, n, ask, v) },
	}
}

func newNodeVersion(n *nodeFlags) *cobra.Command {
	return newQuery(n, "version", "Print what nodes run", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.VersionResponse, error) {
		return c.Version(ctx, &v1alpha1.VersionRequest{})
	}, view[*v1alpha1.VersionResponse]{
		[]string{"HOSTNAME", "VERSION", "KERNEL", "ARCH", "PLATFORM", "SLOT", "MODE"}, func(m *v1alpha1.VersionResponse) [][]string {
			mode := "normal"
			if m.GetMaintenance() {
				mode = "maintenance"
			}
			return [][]string{{m.GetHostname(), m.GetVersion(), m.GetKernel(), m.GetArchitecture(), m.GetPlatform(), m.GetSlot(), mode}}
		},
	})
}

func newNodeHealth(n *nodeFlags) *cobra.Command {
	return newQuery(n, "health", "Say whether nodes do what they should, and what is wrong", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.HealthResponse, error) {
		return c.Health(ctx, &v1alpha1.HealthRequest{})
	}, view[*v1alpha1.HealthResponse]{
		[]string{"CHECK", "STATE", "MESSAGE"}, func(m *v1alpha1.HealthResponse) [][]string {
			rows := [][]string{{"node", state(m.GetReady(), "ready", "not ready"), fmt.Sprintf("%s, up %v", m.GetStage(), time.Duration(m.GetUptime())*time.Second)}}
			for _, k := range m.GetChecks() {
				rows = append(rows, []string{k.GetName(), state(k.GetPassed(), "ok", "failed"), k.GetMessage()})
			}
			return rows
		},
	})
}

func state(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}

func newNodePS(n *nodeFlags) *cobra.Command {
	var kernel bool
	c := newQuery(n, "ps", "List the processes", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.ProcessesResponse, error) {
		return c.Processes(ctx, &v1alpha1.ProcessesRequest{Kernel: kernel})
	}, view[*v1alpha1.ProcessesResponse]{
		[]string{"PID", "PPID", "UID", "STATE", "THREADS", "CPU", "RSS", "STARTED", "COMMAND"}, func(m *v1alpha1.ProcessesResponse) [][]string {
			var rows [][]string
			for _, p := range m.GetProcesses() {
				command := p.GetCommand()
				if command == "" {
					command = "[" + p.GetName() + "]"
				}
				rows = append(rows, []string{decimal(p.GetPid()), decimal(p.GetParent()), decimal(p.GetUid()), p.GetState(), decimal(p.GetThreads()),
					fmt.Sprintf("%.2fs", float64(p.GetCpu())/1000), progress.Bytes(int64(p.GetResident())), when(p.GetStarted()), command})
			}
			return rows
		},
	})
	c.Flags().BoolVarP(&kernel, "kernel", "k", false, "the kernel's threads too")
	return c
}

func decimal[T int32 | uint32 | uint64](n T) string { return fmt.Sprint(n) }

// namespaceFlags adds the flags that name a containerd namespace.
func namespaceFlags(c *cobra.Command) func() string {
	var kubernetes bool
	var name string
	c.Flags().BoolVarP(&kubernetes, "kubernetes", "k", false, "what Kubernetes runs: as --namespace k8s.io")
	c.Flags().StringVar(&name, "namespace", "system", "containerd namespace")
	complete(c, "namespace", func(*cobra.Command) []string { return []string{"system", "k8s.io"} })
	return func() string {
		if kubernetes {
			return "k8s.io"
		}
		return name
	}
}

func newNodeContainers(n *nodeFlags) *cobra.Command {
	var namespace func() string
	c := newQuery(n, "containers", "List the containers", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.ContainersResponse, error) {
		return c.Containers(ctx, &v1alpha1.ContainersRequest{Namespace: namespace()})
	}, view[*v1alpha1.ContainersResponse]{
		[]string{"ID", "NAME", "POD", "STATUS", "PID", "RESTARTS", "MEMORY", "CPU", "CREATED", "IMAGE"}, func(m *v1alpha1.ContainersResponse) [][]string {
			var rows [][]string
			for _, x := range m.GetContainers() {
				rows = append(rows, []string{x.GetId(), x.GetName(), x.GetPod(), x.GetStatus(), decimal(x.GetPid()), decimal(x.GetRestarts()),
					progress.Bytes(int64(x.GetMemory())), fmt.Sprintf("%.2fs", float64(x.GetCpu())/1000), when(x.GetCreated()), x.GetImage()})
			}
			return rows
		},
	})
	namespace = namespaceFlags(c)
	return c
}

func newNodeImages(n *nodeFlags) *cobra.Command {
	var namespace func() string
	c := newQuery(n, "images", "List the container images", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.ImagesResponse, error) {
		return c.Images(ctx, &v1alpha1.ImagesRequest{Namespace: namespace()})
	}, view[*v1alpha1.ImagesResponse]{
		[]string{"NAME", "SIZE", "CREATED", "DIGEST"}, func(m *v1alpha1.ImagesResponse) [][]string {
			var rows [][]string
			for _, x := range m.GetImages() {
				rows = append(rows, []string{x.GetName(), progress.Bytes(int64(x.GetSize())), when(x.GetCreated()), x.GetDigest()})
			}
			return rows
		},
	})
	namespace = namespaceFlags(c)
	return c
}

func newNodeMemory(n *nodeFlags) *cobra.Command {
	return newQuery(n, "memory", "Say what the memory is used for", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.MemoryResponse, error) {
		return c.Memory(ctx, &v1alpha1.MemoryRequest{})
	}, view[*v1alpha1.MemoryResponse]{
		[]string{"TOTAL", "USED", "FREE", "SHARED", "BUFFERS", "CACHED", "AVAILABLE", "SWAP"}, func(m *v1alpha1.MemoryResponse) [][]string {
			b := func(v uint64) string { return progress.Bytes(int64(v)) }
			return [][]string{{b(m.GetTotal()), b(m.GetTotal() - min(m.GetAvailable(), m.GetTotal())), b(m.GetFree()), b(m.GetShared()),
				b(m.GetBuffers()), b(m.GetCached()), b(m.GetAvailable()), b(m.GetSwapTotal())}}
		},
	})
}

func newNodeStats(n *nodeFlags) *cobra.Command {
	return newQuery(n, "stats", "Print load, CPU time, pressure and traffic since the start", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.StatsResponse, error) {
		return c.Stats(ctx, &v1alpha1.StatsRequest{})
	}, view[*v1alpha1.StatsResponse]{[]string{"WHAT", "VALUE"}, statsRows})
}

func statsRows(m *v1alpha1.StatsResponse) [][]string {
	rows := [][]string{
		{"started", when(m.GetBoot())},
		{"load", fmt.Sprintf("%.2f %.2f %.2f", m.GetLoad1(), m.GetLoad5(), m.GetLoad15())},
		{"processors", fmt.Sprintf("%d %s", len(m.GetCpus()), m.GetCpuModel())},
		{"processes", fmt.Sprintf("%d started, %d running, %d blocked", m.GetForks(), m.GetRunning(), m.GetBlocked())},
	}
	c := m.GetCpu()
	total := c.GetUser() + c.GetNice() + c.GetSystem() + c.GetIdle() + c.GetIoWait() + c.GetInterrupt() + c.GetSoftInterrupt() + c.GetSteal()
	share := func(v uint64) float64 { return 100 * float64(v) / float64(max(total, 1)) }
	rows = append(rows, []string{"cpu", fmt.Sprintf("%.1f%% user, %.1f%% system, %.1f%% idle, %.1f%% waiting for disks, %.1f%% stolen",
		share(c.GetUser()+c.GetNice()), share(c.GetSystem()+c.GetInterrupt()+c.GetSoftInterrupt()), share(c.GetIdle()), share(c.GetIoWait()), share(c.GetSteal()))})
	for _, p := range m.GetPressure() {
		rows = append(rows, []string{"pressure on " + p.GetResource(), fmt.Sprintf("some %.2f%% %.2f%% %.2f%%, all %.2f%% %.2f%% %.2f%%",
			p.GetSome10(), p.GetSome60(), p.GetSome300(), p.GetFull10(), p.GetFull60(), p.GetFull300())})
	}
	for _, i := range m.GetInterfaces() {
		rows = append(rows, []string{"network " + i.GetName(), fmt.Sprintf("%s received, %s sent, %d errors, %d dropped", progress.Bytes(int64(i.GetReceived())),
			progress.Bytes(int64(i.GetSent())), i.GetReceivedErrors()+i.GetSentErrors(), i.GetReceivedDropped()+i.GetSentDropped())})
	}
	for _, d := range m.GetDisks() {
		rows = append(rows, []string{"disk " + d.GetName(), fmt.Sprintf("%s read, %s written, busy for %v", progress.Bytes(int64(d.GetReadBytes())),
			progress.Bytes(int64(d.GetWrittenBytes())), time.Duration(d.GetBusy())*time.Millisecond)})
	}
	return rows
}

func newNodeMounts(n *nodeFlags) *cobra.Command {
	return newQuery(n, "mounts", "List the mounted file systems and their space", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.MountsResponse, error) {
		return c.Mounts(ctx, &v1alpha1.MountsRequest{})
	}, view[*v1alpha1.MountsResponse]{
		[]string{"TARGET", "SOURCE", "TYPE", "SIZE", "USED", "AVAILABLE", "OPTIONS"}, func(m *v1alpha1.MountsResponse) [][]string {
			var rows [][]string
			for _, x := range m.GetMounts() {
				size, used, available := "", "", ""
				if x.GetSize() > 0 {
					size, used, available = progress.Bytes(int64(x.GetSize())), progress.Bytes(int64(x.GetUsed())), progress.Bytes(int64(x.GetAvailable()))
				}
				rows = append(rows, []string{x.GetTarget(), x.GetSource(), x.GetType(), size, used, available, x.GetOptions()})
			}
			return rows
		},
	})
}

func newNodeDisks(n *nodeFlags) *cobra.Command {
	return newQuery(n, "disks", "List the block devices", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.DisksResponse, error) {
		return c.Disks(ctx, &v1alpha1.DisksRequest{})
	}, view[*v1alpha1.DisksResponse]{
		[]string{"PATH", "KIND", "SIZE", "SECTOR", "TRANSPORT", "MODEL", "SERIAL", "USE"}, func(m *v1alpha1.DisksResponse) [][]string {
			var rows [][]string
			for _, d := range m.GetDisks() {
				use := strings.Join(d.GetUsers(), ", ")
				if d.GetReadOnly() {
					use = strings.TrimPrefix(use+", read-only", ", ")
				}
				rows = append(rows, []string{d.GetPath(), d.GetKind(), progress.Bytes(int64(d.GetSize())), strconv.Itoa(int(d.GetSector())), d.GetTransport(), d.GetModel(), d.GetSerial(), use})
			}
			return rows
		},
	})
}

func newNodeModules(n *nodeFlags) *cobra.Command {
	return newQuery(n, "modules", "List the kernel modules of extensions and configuration, and why one is not loaded", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.ModulesResponse, error) {
		return c.Modules(ctx, &v1alpha1.ModulesRequest{})
	}, view[*v1alpha1.ModulesResponse]{
		[]string{"NAME", "STATE", "EXTENSION", "PARAMETERS", "REASON"}, func(m *v1alpha1.ModulesResponse) [][]string {
			var rows [][]string
			for _, x := range m.GetModules() {
				rows = append(rows, []string{x.GetName(), x.GetState(), x.GetExtension(), x.GetParameters(), x.GetReason()})
			}
			return rows
		},
	})
}

func newNodeExtensions(n *nodeFlags) *cobra.Command {
	return newQuery(n, "extensions", "List the system extensions", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.ExtensionsResponse, error) {
		return c.Extensions(ctx, &v1alpha1.ExtensionsRequest{})
	}, view[*v1alpha1.ExtensionsResponse]{
		[]string{"NAME", "VERSION", "SIZE", "DESCRIPTION"}, func(m *v1alpha1.ExtensionsResponse) [][]string {
			var rows [][]string
			for _, x := range m.GetExtensions() {
				rows = append(rows, []string{x.GetName(), x.GetVersion(), progress.Bytes(int64(x.GetSize())), x.GetDescription()})
			}
			return rows
		},
	})
}

func newNodeHardening(n *nodeFlags) *cobra.Command {
	var all bool
	c := newQuery(n, "hardening", "Compare kernels with the recommendations of the Kernel Self-Protection Project", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.HardeningResponse, error) {
		return c.Hardening(ctx, &v1alpha1.HardeningRequest{})
	}, view[*v1alpha1.HardeningResponse]{
		hardeningColumns(), func(m *v1alpha1.HardeningResponse) [][]string {
			var rows [][]string
			for _, r := range m.GetResults() {
				row := hardening.Result{Kind: hardening.Kind(r.GetKind()), Name: r.GetName(), Want: r.GetWant(), Found: r.GetFound(),
					Verdict: hardening.Verdict(r.GetVerdict()), Reason: r.GetReason()}
				if all || row.Verdict == hardening.Fail {
					rows = append(rows, hardeningRow(row))
				}
			}
			return append(rows, []string{"total", fmt.Sprintf("%d ok", m.GetOk()), fmt.Sprintf("%d fail", m.GetFailed()), fmt.Sprintf("%d n/a", m.GetNotApplicable())})
		},
	})
	c.Long = `Compare the kernels of nodes, their command lines and parameters, with what the
Kernel Self-Protection Project recommends. What is not as recommended is listed;
docs/hardening.md says why. 'kiln kernel check' does the same before there is a
node.`
	c.Flags().BoolVar(&all, "all", false, "also what is as recommended, and what does not apply")
	return c
}

// Flannel-peer is one node of real flannel: its own backend code, with leases from a directory.
//
// Flannel's interface choice, backends, lease watcher and writer of subnet.env are used as its main program uses them.
// Only the store is this program's: flannel knows etcd and the Kubernetes API, and the other nodes of the tests share a
// directory. What is in the files is what etcd would hold, read and written by flannel's types.
package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/udp"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	log "k8s.io/klog/v2"
)

func main() {
	log.InitFlags(nil)
	// flanneld's names, so that either program can be a node of a test.
	directory := flag.String("file-subnet-mgr", "", "directory with the leases")
	subnetFile := flag.String("subnet-file", "", "where to write subnet.env")
	device := flag.String("iface", "eth0", "underlay interface")
	flag.Parse()
	if err := run(&leaseFiles{directory: *directory}, *device, *subnetFile); err != nil {
		log.Exitf("%v", err)
	}
}

// run does what flannel's main does, in its order, without rules for packet filters.
func run(store *leaseFiles, device, subnetFile string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config, err := store.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	families, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	underlay, err := ipmatch.LookupExtIface(device, "", "", families, ipmatch.PublicIPOpts{})
	if err != nil {
		return err
	}
	chosen, err := backend.NewManager(ctx, store, underlay).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var background sync.WaitGroup
	network, err := chosen.RegisterNetwork(ctx, &background, config)
	if err != nil {
		return err
	}
	lease := network.Lease()
	if err := store.HandleSubnetFile(subnetFile, config, false, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	log.Info("flannel is ready")
	network.Run(ctx)
	background.Wait()
	return nil
}
